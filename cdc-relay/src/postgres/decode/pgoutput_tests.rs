use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A column as a test gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Given {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, bytes) = match self {
            Given::Null => (b'n', None),
            Given::Unchanged => (b'u', None),
            Given::Text(bytes) => (b't', Some(bytes)),
            Given::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.push(kind);
        if let Some(bytes) = bytes {
            out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
    }

    fn of(value: Value<'_>) -> Given {
        match value {
            Value::Null => Given::Null,
            Value::Unchanged => Given::Unchanged,
            Value::Text(bytes) => Given::Text(bytes.to_vec()),
            Value::Binary(bytes) => Given::Binary(bytes.to_vec()),
        }
    }
}

fn tuple(tag: u8, cells: &[Given], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    cells.iter().for_each(|cell| cell.encode(out));
}

fn insert(relation: u32, cells: &[Given]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend_from_slice(&relation.to_be_bytes());
    tuple(b'N', cells, &mut out);
    out
}

fn update(relation: u32, old: Option<(u8, &[Given])>, new: &[Given]) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend_from_slice(&relation.to_be_bytes());
    if let Some((tag, cells)) = old {
        tuple(tag, cells, &mut out);
    }
    tuple(b'N', new, &mut out);
    out
}

fn cells(tuple: &Tuple<'_>) -> Vec<Given> {
    tuple.iter().map(Given::of).collect()
}

fn given() -> impl Strategy<Value = Given> {
    prop_oneof![
        Just(Given::Null),
        Just(Given::Unchanged),
        vec(any::<u8>(), 0..40).prop_map(Given::Text),
        vec(any::<u8>(), 0..40).prop_map(Given::Binary),
    ]
}

proptest! {
    #[test]
    fn an_inserted_row_is_read_as_it_was_sent(relation: u32, row in vec(given(), 0..12)) {
        let (body, mut scratch) = (insert(relation, &row), Scratch::default());
        match decode(&body, &mut scratch) {
            Ok(Message::Insert { relation: found, new }) => {
                prop_assert_eq!(found, relation);
                prop_assert_eq!(cells(&new), row);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn an_update_keeps_old_and_new_apart(
        old in proptest::option::of((prop_oneof![Just(b'K'), Just(b'O')], vec(given(), 0..6))),
        new in vec(given(), 0..6),
    ) {
        let given_old = old.as_ref().map(|(tag, row)| (*tag, row.as_slice()));
        let (body, mut scratch) = (update(7, given_old, &new), Scratch::default());
        let Ok(Message::Update { old: found_old, new: found, .. }) = decode(&body, &mut scratch) else {
            panic!("not an update");
        };
        prop_assert_eq!(cells(&found), new);
        let found_old = found_old.map(|old| match old {
            Old::Key(row) => (b'K', cells(&row)),
            Old::Row(row) => (b'O', cells(&row)),
        });
        prop_assert_eq!(found_old, old);
    }

    #[test]
    fn a_message_cut_short_is_an_error(row in vec(given(), 0..6), cut in 0usize..200) {
        let (body, mut scratch) = (insert(1, &row), Scratch::default());
        let cut = cut % body.len();
        prop_assert!(decode(&body[..cut], &mut scratch).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in vec(any::<u8>(), 0..200)) {
        let mut scratch = Scratch::default();
        let _ = decode(&body, &mut scratch);
    }

    /// The same with a valid tag, so that the depths are reached too.
    #[test]
    fn arbitrary_messages_never_panic(tag in prop::sample::select(b"BCRYOIUDTM".to_vec()), rest in vec(any::<u8>(), 0..200)) {
        let mut body = vec![tag];
        body.extend(rest);
        let mut scratch = Scratch::default();
        if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&body, &mut scratch) {
            let _ = cells(&new);
        }
    }
}

#[test]
fn a_transaction_carries_its_positions_and_time() {
    let mut scratch = Scratch::default();
    let mut begin = vec![b'B'];
    begin.extend_from_slice(&0x16_B3748u64.to_be_bytes());
    begin.extend_from_slice(&1_000_000i64.to_be_bytes());
    begin.extend_from_slice(&42u32.to_be_bytes());
    assert!(matches!(
        decode(&begin, &mut scratch),
        Ok(Message::Begin { commit_lsn: Lsn(0x16_B3748), committed_at: PgTime(1_000_000), xid: 42 })
    ));
    let mut commit = vec![b'C', 0];
    for lsn in [1u64, 2] {
        commit.extend_from_slice(&lsn.to_be_bytes());
    }
    commit.extend_from_slice(&3i64.to_be_bytes());
    assert!(matches!(
        decode(&commit, &mut scratch),
        Ok(Message::Commit { commit_lsn: Lsn(1), end_lsn: Lsn(2), committed_at: PgTime(3) })
    ));
    assert_eq!((begin_lsn(&begin), commit_end_lsn(&begin)), (Some(Lsn(0x16_B3748)), None));
    assert_eq!((begin_lsn(&commit), commit_end_lsn(&commit)), (None, Some(Lsn(2))));
    let short = |body: &[u8]| (begin_lsn(&body[..8]), commit_end_lsn(&body[..17]));
    assert_eq!((short(&begin), short(&commit)), ((None, None), (None, None)));
}

#[test]
fn a_relation_names_its_columns_and_types() {
    let mut body = vec![b'R'];
    body.extend_from_slice(&9u32.to_be_bytes());
    body.extend_from_slice(b"public\0payments\0d");
    body.extend_from_slice(&2u16.to_be_bytes());
    for (flags, name, oid) in [(1u8, "id", 2950u32), (0, "amount", 20)] {
        body.push(flags);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&(-1i32).to_be_bytes());
    }
    let mut scratch = Scratch::default();
    let Ok(Message::Relation(relation)) = decode(&body, &mut scratch) else { panic!("not a relation") };
    assert_eq!(
        (relation.schema.as_str(), relation.name.as_str(), relation.identity),
        ("public", "payments", b'd')
    );
    let columns: Vec<_> = relation.columns.iter().map(|c| (c.name.as_str(), c.type_oid, c.key)).collect();
    assert_eq!(columns, [("id", 2950, true), ("amount", 20, false)]);
}

#[test]
fn a_column_the_row_does_not_have_reads_as_null() {
    let (body, mut scratch) = (insert(1, &[Given::Text(b"x".to_vec())]), Scratch::default());
    let Ok(Message::Insert { new, .. }) = decode(&body, &mut scratch) else { panic!("not an insert") };
    assert_eq!(new.get(1), Value::Null);
}

#[test]
fn the_row_of_a_query_is_read_as_one_of_the_stream() {
    let mut body = Vec::new();
    for cell in [Some(&b"one"[..]), None, Some(b"")] {
        body.extend_from_slice(&cell.map_or(-1, |cell| cell.len() as i32).to_be_bytes());
        body.extend_from_slice(cell.unwrap_or_default());
    }
    let mut scratch = Scratch::default();
    let row: Vec<Given> = data_row(&body, &mut scratch).unwrap().iter().map(Given::of).collect();
    assert_eq!(row, [Given::Text(b"one".to_vec()), Given::Null, Given::Text(Vec::new())]);
    for (bad, error) in [
        (&body[..body.len() - 1], DecodeError::Truncated),
        (&[0, 0, 0, 9, 1], DecodeError::Truncated),
        (&[0xff, 0xff, 0xff, 0xfe], DecodeError::BadLength),
    ] {
        assert_eq!(data_row(bad, &mut scratch).err(), Some(error));
    }
}
