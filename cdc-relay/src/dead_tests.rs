use super::*;

/// Applies records at offsets 0, 1, 2 … to the halted keys of source `s`.
fn read(records: &[&str]) -> Halted {
    let mut halted = Halted::new("s");
    for (offset, record) in records.iter().enumerate() {
        halted.apply(offset as i64, record.as_bytes()).unwrap();
    }
    halted
}

const A: &str = r#"{"source":"s","destination":"t","key":"a","reason":"too large","row":{"id":"1"}}"#;
const B: &str = r#"{"source":"s","destination":"t","key":"b"}"#;
const ANY: &str = r#"{"source":"s","destination":"t","key":null}"#;
const FREE_A: &str = r#"{"source":"s","destination":"t","key":"a","release":true}"#;
const FREE_ALL: &str = r#"{"source":"s","destination":"t","key":null,"release":true}"#;
const KEEP_A: &str = r#"{"source":"s","destination":"t","key":"a","release":false,"from":7}"#;
const KEEP_ALL: &str = r#"{"source":"s","destination":"t","key":null,"release":false,"from":7}"#;
const OTHER: &str = r#"{"source":"o","destination":"t","key":"a"}"#;
const DONE: &str = r#"{"source":"s","destination":"","key":null,"release":true,"done":true}"#;

#[test]
fn what_is_halted_is_what_the_topic_tells() {
    let keys = |keys: &[(&str, i64)]| {
        let keys = keys.iter().map(|&(key, from)| (key.to_owned(), from)).collect();
        Some(Extent::Keys(keys))
    };
    let cases: [(&[&str], Option<Extent>); 16] = [
        (&[], None),
        (&[OTHER, DONE], None),
        (&[A], keys(&[("a", 0)])),
        (&[B, A, A], keys(&[("a", 1), ("b", 0)])),
        (&[A, FREE_A], None),
        (&[A, B, FREE_A], keys(&[("b", 1)])),
        (&[A, FREE_A, A], keys(&[("a", 2)])),
        (&[B, FREE_A], keys(&[("b", 0)])),
        // A letter without a key halts all, from the first that is pending.
        (&[B, A, ANY], Some(Extent::All(0))),
        (&[ANY, A], Some(Extent::All(0))),
        (&[ANY, A, FREE_A], Some(Extent::All(0))),
        (&[A, ANY, B, FREE_ALL], None),
        // A release that stopped half-way.
        (&[A, KEEP_A], keys(&[("a", 7)])),
        (&[ANY, A, FREE_ALL, KEEP_A], keys(&[("a", 7)])),
        (&[ANY, A, KEEP_ALL], Some(Extent::All(7))),
        (&[ANY, KEEP_ALL, FREE_ALL], None),
    ];
    for (records, expected) in cases {
        let halted = read(records);
        assert_eq!(halted.extents.get("t"), expected.as_ref(), "{records:?}");
        assert_eq!(halted.is_empty(), expected.is_none(), "{records:?}");
    }
}

#[test]
fn a_key_is_halted_towards_one_destination() {
    let halted = read(&[A]);
    assert!(halted.contains("t", Some("a")));
    assert!(
        !halted.contains("t", Some("b")) && !halted.contains("t", None) && !halted.contains("u", Some("a"))
    );
    let halted = read(&[ANY]);
    assert!(halted.contains("t", Some("a")) && halted.contains("t", None) && !halted.contains("u", None));
}

#[test]
fn what_is_no_letter_is_an_error() {
    let mut halted = Halted::new("s");
    for bad in ["", "[]", "{}", r#"{"source":"s"}"#, r#"{"source":"s","destination":"t","release":1}"#] {
        assert!(halted.apply(0, bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn too_many_keys_halt_their_destination() {
    let mut halted = Halted::new("s");
    for n in 0..=MOST_KEYS {
        halted.halt("t", Some(&n.to_string()), 5 + n as i64);
    }
    assert_eq!(halted.extents.get("t"), Some(&Extent::All(5)));
    assert_eq!(halted.len(), 1);
}
