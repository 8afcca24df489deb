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
const R: &str = r##"{"source":"s","destination":"t","key":null,"keyless":"#1"}"##;
const S: &str = r##"{"source":"s","destination":"t","key":null,"keyless":"#2"}"##;
const FREE_R: &str = r##"{"source":"s","destination":"t","key":null,"keyless":"#1","release":true}"##;
const OTHER: &str = r#"{"source":"o","destination":"t","key":"a"}"#;
const DONE: &str = r#"{"source":"s","destination":"","key":null,"release":true,"done":true}"#;

#[test]
fn the_topic_determines_the_halted_keys() {
    let keys = |keys: &[(&str, i64)]| {
        let name = |key: &str| if key.starts_with('#') { Halts::row(key) } else { Halts::key(key) };
        let keys = keys.iter().map(|&(key, from)| (name(key), from)).collect();
        Some(Extent::Keys(keys))
    };
    let cases: [(&[&str], Option<Extent>); 23] = [
        (&[], None),
        (&[OTHER, DONE], None),
        (&[A], keys(&[("a", 0)])),
        (&[B, A, A], keys(&[("a", 1), ("b", 0)])),
        (&[A, FREE_A], None),
        (&[A, B, FREE_A], keys(&[("b", 1)])),
        (&[A, FREE_A, A], keys(&[("a", 2)])),
        (&[B, FREE_A], keys(&[("b", 0)])),
        // A row without a key halts itself.
        (&[R, A, R, S], keys(&[("#1", 0), ("a", 1), ("#2", 3)])),
        (&[R, A, FREE_R], keys(&[("a", 1)])),
        (&[R, FREE_R], None),
        (&[R, S, FREE_ALL], None),
        (&[ANY, R, FREE_R], Some(Extent::All(0))),
        (&[R, ANY], Some(Extent::All(0))),
        (&[S, FREE_R], keys(&[("#2", 0)])),
        // A dead letter that names neither halts all, from the first that is pending.
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
fn a_record_that_is_no_dead_letter_is_an_error() {
    let mut halted = Halted::new("s");
    for bad in ["", "[]", "{}", r#"{"source":"s"}"#, r#"{"source":"s","destination":"t","release":1}"#] {
        assert!(halted.apply(0, bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn too_many_keys_halt_their_destination() {
    let mut halted = Halted::new("s");
    for n in 0..=KEYS_MAX {
        halted.halt("t", &Halts::key(&n.to_string()), 5 + n as i64);
    }
    assert_eq!(halted.extents.get("t"), Some(&Extent::All(5)));
    assert_eq!(halted.len(), 1);
}

#[test]
fn rows_without_a_key_halt_no_key_however_many_they_are() {
    let mut halted = Halted::new("s");
    for n in 0..=KEYS_MAX + 1 {
        halted.halt("t", &Halts::row(&format!("#{n}")), 5 + n as i64);
    }
    assert!(halted.has_keyless("t") && !halted.contains("t", Some("a")) && !halted.contains("t", None));
    assert_eq!(halted.len(), KEYS_MAX + 1);
    let further = (Halts::row(FURTHER), 5 + KEYS_MAX as i64);
    assert_eq!(halted.unit("t", &Halts::row(&format!("#{}", KEYS_MAX + 1))), Some(further));
    assert_eq!(halted.unit("t", &Halts::row("#7")), Some((Halts::row("#7"), 12)));
    assert_eq!(halted.unit("t", &Halts::key("a")), None);
}
