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

fn written(relation: &Relation, cells: &[Value<'_>]) -> String {
    let mut builder = RowBuilder::default();
    builder.begin();
    for cell in cells {
        match cell {
            Value::Text(text) => builder.text(text),
            Value::Null => builder.null(),
            Value::Unchanged | Value::Binary(_) => builder.unknown(),
        }
    }
    let row = Row::insert(builder.tuple().unwrap());
    let halts = Halts::key("k\"1");
    let halt = Halt { destination: "topic:T", halts: &halts };
    let cause = Cause { reason: "too large", op: "insert", id: Some(b"t/1") };
    let mut out = b"what was there before".to_vec();
    let row = FailedRow { plan: &plan(relation), row: &row, transaction: &transaction() };
    write("s", halt, cause, row, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_dead_letter_holds_all_that_emitting_its_row_again_needs() {
    let relation = relation(&[("id", 20), ("no,te", 25), ("big", 17), ("gone", 25)]);
    let text = written(&relation, &[Value::Text(b"1"), Value::Null, Value::Text(b"\\x00"), Value::Unchanged]);
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
    let dead_letter = DeadLetter::read(text.as_bytes()).unwrap().unwrap();
    assert_eq!(dead_letter.relation(|_| 0), relation);
    let mut builder = RowBuilder::default();
    dead_letter.fill(&relation, &mut builder);
    let row: Vec<Value<'_>> = builder.tuple().unwrap().iter().collect();
    assert_eq!(row, [Value::Text(b"1"), Value::Null, Value::Text(b"\\x00"), Value::Unchanged]);
    let (emitted, again) = (transaction(), dead_letter.transaction(PgTime(0)));
    assert_eq!(
        (again.cluster, again.commit_lsn, again.committed_at, again.time, again.rows),
        (emitted.cluster, emitted.commit_lsn, emitted.committed_at, emitted.time, emitted.rows)
    );
    assert!(again.re_emitted);
}

#[test]
fn a_dead_letter_fits_its_topic_whatever_the_row() {
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
        let text = written(&relation, &[b"0".as_slice(), b, c, b"2"].map(Value::Text));
        assert!(text.len() < RECORD_BYTES_MAX, "{}", text.len());
        let dead_letter = DeadLetter::read(text.as_bytes()).unwrap().unwrap();
        assert!(dead_letter.column(omitted) == ColumnText::Missing);
        assert_eq!(
            (dead_letter.column("a"), dead_letter.column("d")),
            (ColumnText::Text("0"), ColumnText::Text("2"))
        );
        assert!(text.contains(&format!(r#""omitted":"{omitted}""#)));
    }
}

#[test]
fn a_dead_letter_of_an_earlier_release_can_be_emitted() {
    let old = br#"{"source":"s","destination":"topic:T","key":"k","reason":"r","table":"public.t",
        "position":"0/10","row":{"id":"1","note":null},"omitted":"big"}"#;
    let dead_letter = DeadLetter::read(old).unwrap().unwrap();
    assert!(!dead_letter.has_types() && !dead_letter.has_ordinal() && dead_letter.wal_position().is_none());
    assert_eq!(dead_letter.relation(|name| name.len() as u32), relation(&[("id", 2), ("note", 4)]));
    assert_eq!(dead_letter.transaction(PgTime(7)).committed_at, PgTime(7));
}

#[test]
fn an_older_dead_letter_with_bytes_that_are_no_utf_8_is_readable() {
    let old = b"{\"source\":\"s\",\"destination\":\"d\",\"key\":\"k\",\"row\":{\"c\":\"\xE9\"}}";
    let dead_letter = DeadLetter::read(old).unwrap().unwrap();
    assert_eq!(dead_letter.column("c"), ColumnText::Text(r"\351"));
}

#[test]
fn the_record_of_a_release_is_no_dead_letter() {
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
    let long = "ä".repeat(REASON_BYTES_MAX);
    assert_eq!(shortened(&format!("x{long}")).len(), REASON_BYTES_MAX - 1);
}
