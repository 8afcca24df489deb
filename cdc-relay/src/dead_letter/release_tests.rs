use super::*;

fn order(destination: Option<&str>, key: Option<&str>) -> ReleaseOrder {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let (id, source) = ("o".to_owned(), "s".to_owned());
    let halts = key.map_or_else(Halts::default, name);
    ReleaseOrder { id, source, destination: owned(destination), halts, skip: false }
}

/// `#7` is the name of a row without a key, all else a key.
fn name(name: &str) -> Halts {
    if name.starts_with('#') { Halts::row(name) } else { Halts::key(name) }
}

/// A dead letter of destination, key, and number of its commit.
fn dead_letter(destination: &str, key: Option<&str>, commit: u64) -> String {
    let key = match key.map(name) {
        Some(Halts { key: None, keyless: Some(row) }) => format!("null,\"keyless\":\"{row}\""),
        Some(Halts { key, .. }) => format!("\"{}\"", key.unwrap_or_default()),
        None => "null".to_owned(),
    };
    format!(
        r#"{{"source":"s","destination":"{destination}","key":{key},"cluster":"c","position":"0/{commit:X}","ordinal":1}}"#
    )
}

/// The topic, from offset 0 on.
type Topic = Vec<String>;
/// The halted keys, by destination.
type Left = Vec<(String, Extent)>;

fn topic(dead_letters: &[(&str, Option<&str>, u64)]) -> Topic {
    dead_letters.iter().map(|&(destination, key, commit)| dead_letter(destination, key, commit)).collect()
}

fn halted(topic: &Topic) -> Halted {
    let mut halted = Halted::new("s");
    for (offset, value) in topic.iter().enumerate() {
        halted.apply(offset as i64, value.as_bytes()).unwrap();
    }
    halted
}

/// Carries the order out; dead letters at the offsets in `bad` cannot be emitted. Answers the offsets that were emitted, and
/// puts the notes into the topic.
fn carry_out(order: &ReleaseOrder, topic: &mut Topic, bad: &[usize]) -> Vec<usize> {
    let halted = halted(topic);
    let mut pass = ReleasePass::new(order, &halted);
    let mut emitted = Vec::new();
    if let Some(from) = pass.from() {
        for (offset, value) in topic.iter().enumerate().skip(from as usize) {
            let Some(dead_letter) = DeadLetter::read(value.as_bytes()).unwrap() else { continue };
            if !pass.wants(offset as i64, &dead_letter) {
                continue;
            }
            if bad.contains(&offset) {
                pass.failed(offset as i64, &dead_letter, "bad");
            } else {
                pass.emitted(&dead_letter);
                emitted.push(offset);
            }
        }
    }
    let notes = pass.records();
    assert!(notes.last().is_some_and(|note| note.done), "the end is always said");
    topic.extend(notes.iter().map(|note| serde_json::to_string(note).unwrap()));
    emitted
}

/// The halted keys of `T` and `U` after the whole topic.
fn left(topic: &Topic) -> Left {
    halted(topic).extents().map(|(name, extent)| (name.to_owned(), extent.clone())).collect()
}

fn keys(destination: &str, keys: &[(&str, i64)]) -> (String, Extent) {
    let keys = keys.iter().map(|&(key, from)| (name(key), from)).collect();
    (destination.to_owned(), Extent::Keys(keys))
}

const A: Option<&str> = Some("a");
const B: Option<&str> = Some("b");
/// Two rows without a key.
const R: Option<&str> = Some("#1");
const S: Option<&str> = Some("#2");

#[test]
fn an_order_emits_its_dead_letters_in_order_and_no_others() {
    let dead_letters = topic(&[("T", A, 1), ("T", B, 2), ("U", A, 3), ("T", A, 4)]);
    let cases: [(ReleaseOrder, &[usize], Left); 6] = [
        (order(None, None), &[0, 1, 2, 3], vec![]),
        (order(Some("T"), None), &[0, 1, 3], vec![keys("U", &[("a", 2)])]),
        (order(None, A), &[0, 2, 3], vec![keys("T", &[("b", 1)])]),
        (order(Some("T"), A), &[0, 3], vec![keys("T", &[("b", 1)]), keys("U", &[("a", 2)])]),
        (order(Some("T"), Some("x")), &[], left(&dead_letters)),
        (ReleaseOrder { source: "other".to_owned(), ..order(None, None) }, &[], left(&dead_letters)),
    ];
    for (order, emitted, rest) in cases {
        let mut topic = dead_letters.clone();
        assert_eq!(carry_out(&order, &mut topic, &[]), emitted, "{order:?}");
        assert_eq!(left(&topic), rest, "{order:?}");
    }
}

#[test]
fn a_dead_letter_that_cannot_be_emitted_keeps_what_follows_it_and_nothing_else() {
    let mut topic = topic(&[("T", A, 1), ("T", A, 2), ("T", B, 3), ("T", A, 4)]);
    assert_eq!(carry_out(&order(None, None), &mut topic, &[1]), [0, 2]);
    assert_eq!(left(&topic), [keys("T", &[("a", 1)])]);
    // The next release goes on from there.
    assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [1, 3]);
    assert_eq!(left(&topic), []);
}

#[test]
fn a_row_without_a_key_is_released_by_its_name_and_keeps_itself_only() {
    let dead_letters = topic(&[("T", R, 1), ("T", A, 2), ("T", S, 3), ("T", R, 4), ("U", R, 5)]);
    let both = keys("U", &[("#1", 4)]);
    let cases: [(ReleaseOrder, &[usize], &[usize], Left); 5] = [
        (order(Some("T"), R), &[], &[0, 3], vec![keys("T", &[("a", 1), ("#2", 2)]), both.clone()]),
        (order(None, R), &[], &[0, 3, 4], vec![keys("T", &[("a", 1), ("#2", 2)])]),
        (order(None, A), &[], &[1], vec![keys("T", &[("#1", 0), ("#2", 2)]), both]),
        (order(None, None), &[], &[0, 1, 2, 3, 4], vec![]),
        // One that still cannot be emitted.
        (order(None, None), &[3], &[0, 1, 2, 4], vec![keys("T", &[("#1", 3)])]),
    ];
    for (order, bad, emitted, rest) in cases {
        let mut topic = dead_letters.clone();
        assert_eq!(carry_out(&order, &mut topic, bad), emitted, "{order:?}");
        assert_eq!(left(&topic), rest, "{order:?}");
    }
    // In a destination that an older relay halted as a whole.
    let mut topic = topic(&[("T", None, 1), ("T", R, 2), ("T", A, 3)]);
    assert_eq!(carry_out(&order(None, None), &mut topic, &[1]), [0, 2]);
    assert_eq!(left(&topic), [keys("T", &[("#1", 1)])]);
}

#[test]
fn an_empty_key_is_a_key() {
    let mut topic = topic(&[("T", Some(""), 1), ("T", A, 2), ("T", Some(""), 3)]);
    assert_eq!(left(&topic), [keys("T", &[("", 0), ("a", 1)])]);
    assert_eq!(carry_out(&order(None, Some("")), &mut topic, &[]), [0, 2]);
    assert_eq!(left(&topic), [keys("T", &[("a", 1)])]);
}

#[test]
fn a_skipped_dead_letter_halts_nothing() {
    let mut topic = topic(&[("T", A, 1), ("T", A, 2), ("T", None, 3), ("T", A, 4)]);
    let order = ReleaseOrder { skip: true, ..order(None, None) };
    assert_eq!(carry_out(&order, &mut topic, &[1, 2]), [0, 3]);
    assert_eq!(left(&topic), []);
    let done: ReleaseRecord = serde_json::from_str(topic.last().unwrap()).unwrap();
    assert_eq!((done.emitted, done.skipped), (2, 2));
}

#[test]
fn after_a_release_its_dead_letters_are_not_emitted_again() {
    let mut topic = topic(&[("T", A, 1), ("T", A, 2)]);
    assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [0, 1]);
    // The same message once more, after a crash.
    assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [0usize; 0]);
    // Halted anew: only the new dead letter.
    topic.push(dead_letter("T", A, 9));
    let at = topic.len() - 1;
    assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [at]);
}

#[test]
fn a_dead_letter_that_was_written_twice_is_emitted_once() {
    // The session broke after the second, and began again.
    let mut twice = topic(&[("T", A, 1), ("T", A, 2), ("T", A, 1), ("T", A, 2), ("T", A, 3)]);
    assert_eq!(carry_out(&order(None, A), &mut twice, &[]), [0, 1, 4]);
    // Positions of another cluster say nothing about these.
    let mut moved = topic(&[("T", A, 9)]);
    moved.push(dead_letter("T", A, 1).replace(r#""c""#, r#""d""#));
    assert_eq!(carry_out(&order(None, A), &mut moved, &[]), [0, 1]);
    // Older dead letters, and rows that a query answered, do not say where they stand.
    for unplaced in [r#""ordinal":1"#, r#""position":"0/2""#] {
        let mut topic = topic(&[("T", A, 2), ("T", A, 2)]);
        topic[1] = topic[1].replace(unplaced, r#""existing":true"#);
        assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [0, 1], "{unplaced}");
    }
}

#[test]
fn a_destination_that_is_halted_as_a_whole_is_released_as_a_whole() {
    let dead_letters = topic(&[("T", A, 1), ("T", None, 2), ("T", B, 3), ("T", A, 4)]);
    // One key alone: an earlier dead letter may be of it.
    let mut topic = dead_letters.clone();
    assert_eq!(carry_out(&order(None, A), &mut topic, &[]), [0usize; 0]);
    assert_eq!(left(&topic), left(&dead_letters));
    let done: ReleaseRecord = serde_json::from_str(topic.last().unwrap()).unwrap();
    assert!(done.reason.is_some_and(|reason| reason.contains("towards T")));

    let cases: [(&[usize], &[usize], Left); 4] = [
        (&[], &[0, 1, 2, 3], vec![]),
        // A key that stops keeps itself only.
        (&[0], &[1, 2], vec![keys("T", &[("a", 0)])]),
        (&[2], &[0, 1, 3], vec![keys("T", &[("b", 2)])]),
        // One without a key keeps all.
        (&[1], &[0], vec![("T".to_owned(), Extent::All(1))]),
    ];
    for (bad, emitted, rest) in cases {
        let mut topic = dead_letters.clone();
        assert_eq!(carry_out(&order(None, None), &mut topic, bad), emitted, "{bad:?}");
        assert_eq!(left(&topic), rest, "{bad:?}");
    }
    // Both: what stopped first is pending too.
    let mut topic = dead_letters.clone();
    assert_eq!(carry_out(&order(None, None), &mut topic, &[0, 1]), [0usize; 0]);
    assert_eq!(left(&topic), [("T".to_owned(), Extent::All(0))]);
}

#[test]
fn an_order_reads_as_it_is_written() {
    let order = ReleaseOrder { skip: true, ..order(Some("topic:T"), None) };
    assert_eq!(ReleaseOrder::read(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
    assert!(ReleaseOrder::read(br#"{"id":"1"}"#).is_err());
    assert!(ReleaseOrder::read(b"\xff").is_err());
}
