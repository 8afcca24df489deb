//! Changes as they come from the WAL, and the lines they become.

use super::*;
use crate::postgres::decode::pgoutput::{Message, Scratch, decode};
use crate::postgres::decode::relation::Column;

fn relation(identity: u8) -> Relation {
    let column = |name: &str, type_oid, key| Column { name: name.to_owned(), type_oid, key };
    let columns = vec![column("id", 20, true), column("status", 25, false), column("doc", 114, false)];
    Relation { id: 1, schema: "public".to_owned(), name: "orders".to_owned(), identity, columns }
}

/// `~` is null, `?` left out of the WAL.
fn tuple(cells: &[&str]) -> Vec<u8> {
    let mut out = (cells.len() as u16).to_be_bytes().to_vec();
    for cell in cells {
        match *cell {
            "~" => out.push(b'n'),
            "?" => out.push(b'u'),
            text => {
                out.push(b't');
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    out
}

fn message(parts: &[&[u8]]) -> Vec<u8> {
    let [tag, rest @ ..] = parts else { panic!("a message has a tag") };
    let mut out = [tag, &1u32.to_be_bytes()[..]].concat();
    rest.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// The lines of one transaction with this message.
fn shown(format: Format, relation: Relation, bytes: &[u8]) -> String {
    let mut show = Show::new(format, Vec::new());
    show.relation(relation);
    show.begin(Lsn(0x10), PgTime(0), 7);
    let mut scratch = Scratch::default();
    match decode(bytes, &mut scratch).expect("a message") {
        Message::Insert { relation, new } => show.change(relation, &Change::Insert(new)),
        Message::Update { relation, old, new } => show.change(relation, &Change::Update { old, new }),
        Message::Delete { relation, old } => show.change(relation, &Change::Delete(old)),
        other => panic!("{other:?}"),
    }
    let chunk = show.take();
    assert_eq!(chunk.changes, 1);
    String::from_utf8(chunk.bytes).expect("UTF-8")
}

const TEXT: Format = Format::Text { colour: false };

#[test]
fn a_change_is_a_line_with_what_is_known_of_it() {
    let new = tuple(&["5", "paid", "?"]);
    let table: &[(u8, Vec<u8>, &str)] = &[
        (
            b'd',
            message(&[b"I", b"N", &tuple(&["5", "new", "~"])]),
            "insert   orders  id=5  status=new  doc=null",
        ),
        (b'd', message(&[b"U", b"N", &new]), "update   orders  id=5  status=paid  doc=(large, unchanged)"),
        (
            b'd',
            message(&[b"U", b"K", &tuple(&["4", "~", "~"]), b"N", &new]),
            "update   orders  id=4 → 5  status=paid  doc=(large, unchanged)",
        ),
        // With the old row, what did not change is not repeated; the primary key is the key.
        (
            b'f',
            message(&[b"U", b"O", &tuple(&["5", "new", "{}"]), b"N", &new]),
            "update   orders  id=5  status=new → paid",
        ),
        (b'd', message(&[b"D", b"K", &tuple(&["5", "~", "~"])]), "delete   orders  id=5"),
        (
            b'f',
            message(&[b"D", b"O", &tuple(&["5", "new", "{}"])]),
            "delete   orders  id=5  status=new  doc={}",
        ),
    ];
    for (identity, bytes, expected) in table {
        let text = shown(TEXT, relation(*identity), bytes);
        assert_eq!(text, format!("2000-01-01T00:00:00.000000Z  transaction 7  0/10\n  {expected}\n"));
    }
}

#[test]
fn json_is_one_object_a_line_with_every_value_whole() {
    let head = r#"{"time":"2000-01-01T00:00:00.000000Z","commit":"0/10","xid":7,"ordinal":0,"table":"public.orders","operation":"#;
    let new = tuple(&["5", "paid", "?"]);
    let table: &[(u8, Vec<u8>, &str)] = &[
        (
            b'd',
            message(&[b"I", b"N", &tuple(&["5", "a\"b", "{\n\"x\": 1}"])]),
            r#""insert","key":{"id":5},"after":{"id":5,"status":"a\"b","doc":{ "x": 1}}}"#,
        ),
        (
            b'd',
            message(&[b"U", b"K", &tuple(&["4", "~", "~"]), b"N", &new]),
            r#""update","key":{"id":5},"before":{"id":4},"after":{"id":5,"status":"paid"},"unchanged":["doc"]}"#,
        ),
        (
            b'f',
            message(&[b"U", b"O", &tuple(&["5", "new", "{}"]), b"N", &new]),
            r#""update","key":{"id":5},"before":{"id":5,"status":"new","doc":{}},"after":{"id":5,"status":"paid"},"unchanged":["doc"]}"#,
        ),
        (b'd', message(&[b"D", b"K", &tuple(&["5", "~", "~"])]), r#""delete","key":{"id":5}}"#),
    ];
    for (identity, bytes, expected) in table {
        let text = shown(Format::Json, relation(*identity), bytes);
        assert_eq!(text, format!("{head}{expected}\n"));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    }
}

#[test]
fn only_the_tables_that_were_asked_for_are_shown() {
    let insert = message(&[b"I", b"N", &tuple(&["5", "new", "~"])]);
    let mut scratch = Scratch::default();
    let Ok(Message::Insert { new, .. }) = decode(&insert, &mut scratch) else { panic!("an insert") };
    for (only, expected) in [("orders", 1), ("public.orders", 1), ("audit.orders", 0), ("order", 0)] {
        let mut show = Show::new(TEXT, vec![only.parse().expect("a name")]);
        show.relation(relation(b'd'));
        show.begin(Lsn(1), PgTime(0), 7);
        show.change(1, &Change::Insert(new));
        show.truncate(0, &[1]);
        assert_eq!(show.take().changes, expected * 2, "{only}");
    }
}
