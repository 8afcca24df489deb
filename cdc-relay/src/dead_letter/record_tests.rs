use super::*;
use crate::postgres::decode::pgoutput::Value;

fn relation(columns: &[(&str, u32)]) -> Relation {
    let column = |&(name, type_oid): &(&str, u32)| Column { name: name.to_owned(), type_oid, key: false };
    let (schema, name) = ("public".to_owned(), "t".to_owned());
    Relation { id: 0, schema, name, identity: b'd', columns: columns.iter().map(column).collect() }
}

fn plan(relation: &Relation) -> Plan {
    let columns = relation.columns.iter().map(|column| column.name.clone()).collect();
    Plan { relation: "public.t".to_owned(), columns, shape: relation.clone(), ..Plan::default() }
}

fn transaction() -> Transaction {
    let mut transaction = Transaction {
        cluster: "77/1".to_owned(),
        commit_lsn: Lsn(0x1_0000_0010),
        committed_at: PgTime(1_000_000),
        rows: 3,
        ..Transaction::default()
    };
    transaction.committed_at.write_rfc3339(&mut transaction.time);
    transaction
}

/// `None` in a cell: not in the WAL.
fn written(relation: &Relation, cells: &[Option<Option<&[u8]>>]) -> String {
    let mut made = RowBuilder::default();
    made.begin();
    for cell in cells {
        match cell {
            Some(Some(text)) => made.text(text),
            Some(None) => made.null(),
            None => made.unknown(),
        }
    }
    let row = Row::insert(made.tuple().unwrap());
    let halts = Halts::key("k\"1");
    let halt = Halt { source: "s", destination: "topic:T", halts: &halts };
    let cause = Cause { reason: "too large", op: "insert", id: Some(b"t/1") };
    let mut out = b"what was there before".to_vec();
    write(halt, cause, (&plan(relation), &row, &transaction()), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_letter_holds_all_that_telling_its_row_again_takes() {
    let relation = relation(&[("id", 20), ("no,te", 25), ("big", 17), ("gone", 25)]);
    let text = written(&relation, &[Some(Some(b"1")), Some(None), Some(Some(b"\\x00")), None]);
    assert_eq!(
        text,
        concat!(
            r#"{"source":"s","destination":"topic:T","key":"k\"1","reason":"too large","table":"public.t","#,
            r#""op":"insert","id":"t/1","position":"1/10","cluster":"77/1","#,
            r#""committed_at":"2000-01-01T00:00:01.000000Z","ordinal":3,"#,
            r#""columns":[["id",20],["no,te",25],["big",17],["gone",25]],"#,
            r#""row":{"id":"1","no,te":null,"big":"\\x00"},"omitted":"gone"}"#
        )
    );
    let letter = DeadLetter::read(text.as_bytes()).unwrap().unwrap();
    assert_eq!(letter.relation(|_| 0), relation);
    let mut made = RowBuilder::default();
    letter.fill(&relation, &mut made);
    let row: Vec<Value<'_>> = made.tuple().unwrap().iter().collect();
    assert_eq!(row, [Value::Text(b"1"), Value::Null, Value::Text(b"\\x00"), Value::Unchanged]);
    let (emitted, again) = (transaction(), letter.transaction(PgTime(0)));
    assert_eq!(
        (again.cluster, again.commit_lsn, again.committed_at, again.time, again.rows),
        (emitted.cluster, emitted.commit_lsn, emitted.committed_at, emitted.time, emitted.rows)
    );
    assert!(again.re_emitted);
}

#[test]
fn a_letter_fits_its_topic_whatever_the_row() {
    let relation = relation(&[("a", 25), ("b", 25), ("c", 25), ("d", 25)]);
    // A control character takes six bytes in JSON.
    let (long, most, controls) = (
        vec![b'x'; COLUMNS_BYTES_MAX + 1],
        vec![b'x'; COLUMNS_BYTES_MAX - 100],
        vec![1; COLUMNS_BYTES_MAX / 2],
    );
    let cases: [(&[u8], &[u8], &str); 4] =
        [(&long, b"1", "b"), (&controls, b"1", "b"), (&most, &most, "c"), (b"1", &long, "c")];
    for (b, c, omitted) in cases {
        let text = written(&relation, &[Some(Some(b"0")), Some(Some(b)), Some(Some(c)), Some(Some(b"2"))]);
        assert!(text.len() < RECORD_BYTES_MAX, "{}", text.len());
        let letter = DeadLetter::read(text.as_bytes()).unwrap().unwrap();
        assert!(letter.column(omitted).is_none());
        assert_eq!((letter.column("a"), letter.column("d")), (Some(Some("0")), Some(Some("2"))));
        assert!(text.contains(&format!(r#""omitted":"{omitted}""#)));
    }
}

#[test]
fn a_letter_of_an_earlier_release_can_be_told() {
    let old = br#"{"source":"s","destination":"topic:T","key":"k","reason":"r","table":"public.t",
        "position":"0/10","row":{"id":"1","note":null},"omitted":"big"}"#;
    let letter = DeadLetter::read(old).unwrap().unwrap();
    assert!(!letter.has_types() && !letter.has_ordinal() && letter.place().is_none());
    assert_eq!(letter.relation(|name| name.len() as u32), relation(&[("id", 2), ("note", 4)]));
    assert_eq!(letter.transaction(PgTime(7)).committed_at, PgTime(7));
}

#[test]
fn an_older_letter_with_bytes_that_are_no_utf_8_is_readable() {
    let old = b"{\"source\":\"s\",\"destination\":\"d\",\"key\":\"k\",\"row\":{\"c\":\"\xE9\"}}";
    let letter = DeadLetter::read(old).unwrap().unwrap();
    assert_eq!(letter.column("c"), Some(Some(r"\351")));
}

#[test]
fn what_says_what_became_of_a_key_is_no_letter() {
    for note in [
        r#"{"source":"s","destination":"d","key":"k","release":true}"#,
        r#"{"source":"s","destination":"d","key":"k","release":false,"from":3}"#,
    ] {
        assert!(DeadLetter::read(note.as_bytes()).unwrap().is_none(), "{note}");
    }
}

#[test]
fn a_reason_is_cut_between_characters() {
    assert_eq!(shortened("short"), "short");
    let long = "ä".repeat(LONGEST_REASON);
    assert_eq!(shortened(&format!("x{long}")).len(), LONGEST_REASON - 1);
}
