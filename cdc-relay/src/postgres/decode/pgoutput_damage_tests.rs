//! The decoder on what a server said, and on what became of it on its way.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A server's messages of every kind (tests/corpus/capture.psql).
fn captured() -> Vec<Vec<u8>> {
    let hex = |line: &str| {
        (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
    };
    include_str!("../../../tests/corpus/pgoutput.hex").lines().map(hex).collect()
}

/// Bytes of which the decoder keeps nothing.
const IGNORED: u8 = 0;

#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    ignored: Vec<usize>,
}

impl Out {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.put(text.as_bytes());
        self.put(&[0]);
    }

    fn ignored(&mut self, count: usize) {
        self.ignored.extend(self.bytes.len()..self.bytes.len() + count);
        self.put(&vec![IGNORED; count]);
    }

    fn tuple(&mut self, tag: u8, tuple: &Tuple<'_>) {
        self.put(&[tag]);
        self.put(&(tuple.len() as u16).to_be_bytes());
        for value in tuple.iter() {
            let (kind, bytes) = match value {
                Value::Null => (b'n', None),
                Value::Unchanged => (b'u', None),
                Value::Text(bytes) => (b't', Some(bytes)),
                Value::Binary(bytes) => (b'b', Some(bytes)),
            };
            self.put(&[kind]);
            if let Some(bytes) = bytes {
                self.put(&(bytes.len() as u32).to_be_bytes());
                self.put(bytes);
            }
        }
    }

    fn old(&mut self, old: &Old<'_>) {
        match old {
            Old::Key(tuple) => self.tuple(b'K', tuple),
            Old::Row(tuple) => self.tuple(b'O', tuple),
        }
    }

    fn relation(&mut self, relation: &Relation) {
        self.put(&relation.id.to_be_bytes());
        self.text(&relation.schema);
        self.text(&relation.name);
        self.put(&[relation.identity]);
        self.put(&(relation.columns.len() as u16).to_be_bytes());
        for column in &relation.columns {
            self.ignored(1); // other flags than the key's
            self.text(&column.name);
            self.put(&column.type_oid.to_be_bytes());
            self.ignored(4); // type modifier
        }
    }
}

/// The message as the server writes it.
fn encode(message: &Message<'_>) -> Out {
    let mut out = Out::default();
    match message {
        Message::Begin { commit_lsn, committed_at, xid } => {
            out.put(b"B");
            out.put(&commit_lsn.0.to_be_bytes());
            out.put(&committed_at.0.to_be_bytes());
            out.put(&xid.to_be_bytes());
        }
        Message::Commit { commit_lsn, end_lsn, committed_at } => {
            out.put(b"C");
            out.ignored(1);
            out.put(&commit_lsn.0.to_be_bytes());
            out.put(&end_lsn.0.to_be_bytes());
            out.put(&committed_at.0.to_be_bytes());
        }
        Message::Origin { lsn, name } => {
            out.put(b"O");
            out.put(&lsn.0.to_be_bytes());
            out.text(name);
        }
        Message::Relation(relation) => {
            out.put(b"R");
            out.relation(relation);
        }
        Message::Type { oid, schema, name } => {
            out.put(b"Y");
            out.put(&oid.to_be_bytes());
            out.text(schema);
            out.text(name);
        }
        Message::Insert { relation, new } => {
            out.put(b"I");
            out.put(&relation.to_be_bytes());
            out.tuple(b'N', new);
        }
        Message::Update { relation, old, new } => {
            out.put(b"U");
            out.put(&relation.to_be_bytes());
            if let Some(old) = old {
                out.old(old);
            }
            out.tuple(b'N', new);
        }
        Message::Delete { relation, old } => {
            out.put(b"D");
            out.put(&relation.to_be_bytes());
            out.old(old);
        }
        Message::Truncate { flags, relations } => {
            out.put(b"T");
            out.put(&(relations.len() as u32 / 4).to_be_bytes());
            out.put(&[*flags]);
            out.put(relations);
        }
        Message::Logical { lsn, prefix, content, .. } => {
            out.put(b"M");
            out.ignored(1);
            out.put(&lsn.0.to_be_bytes());
            out.text(prefix);
            out.put(&(content.len() as u32).to_be_bytes());
            out.put(content);
        }
    }
    out
}

/// A message is refused, or everything in it was understood: written again, it is the same. Answers whether it was
/// taken.
fn refused_or_understood(body: &[u8]) -> bool {
    let mut scratch = Scratch::default();
    let Ok(message) = decode(body, &mut scratch) else { return false };
    let out = encode(&message);
    let mut kept = body.to_vec();
    assert_eq!(kept.len(), out.bytes.len());
    out.ignored.iter().for_each(|at| kept[*at] = IGNORED);
    assert_eq!(kept, out.bytes);
    // A decoded row never has more bytes than its message.
    assert!(scratch.new.len() <= body.len() && scratch.old.len() <= body.len());
    true
}

/// A captured message that was cut off, overwritten, or run together with another one.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let any_captured = select(captured());
    let damage = vec((any::<Index>(), any::<u8>()), 0..4);
    (any_captured.clone(), any_captured, damage, any::<Index>(), 0u8..4).prop_map(
        |(mut body, other, damage, at, kind)| {
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let at = at.index(body.len());
            match kind {
                0 => body.truncate(at),
                1 => drop(body.splice(at..at, other.into_iter().take(20))),
                2 => body.extend_from_slice(&other),
                _ => {}
            }
            body
        },
    )
}

#[test]
fn a_servers_messages_are_decoded_to_the_last_byte() {
    let mut kinds = std::collections::BTreeSet::new();
    for body in captured() {
        assert!(refused_or_understood(&body), "{body:?}");
        kinds.insert(body[0]);
    }
    assert!(kinds.iter().eq(b"BCDIMORTUY"), "a kind of message is not in the corpus: {kinds:?}");
}

#[test]
fn a_message_that_ends_too_early_is_refused_wherever_it_does() {
    for body in captured() {
        for end in 0..body.len() {
            assert!(!refused_or_understood(&body[..end]), "{end} bytes of {body:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// The fault it prevents: a copy that is emitted twice, because its origin's name was not understood.
    #[test]
    fn any_origin_is_understood(lsn in any::<u64>(), name in "[^\\x00]{0,40}") {
        let sent = Message::Origin { lsn: Lsn(lsn), name: &name };
        let body = encode(&sent).bytes;
        let mut scratch = Scratch::default();
        match decode(&body, &mut scratch) {
            Ok(Message::Origin { lsn: found, name: of }) => prop_assert_eq!((found, of), (Lsn(lsn), name.as_str())),
            other => prop_assert!(false, "{other:?}"),
        }
        prop_assert!(refused_or_understood(&body));
        for end in 0..body.len() {
            prop_assert!(!refused_or_understood(&body[..end]));
        }
    }

    /// The losses it prevents: a panic, and a row that is read past its end or as another one.
    #[test]
    fn a_damaged_message_is_refused_or_understood(body in damaged()) {
        refused_or_understood(&body);
    }

    #[test]
    fn noise_is_refused_or_understood(
        kind in select(b"BCDIMORTUY".to_vec()),
        mut body in vec(any::<u8>(), 0..200),
    ) {
        body.insert(0, kind);
        refused_or_understood(&body);
    }
}
