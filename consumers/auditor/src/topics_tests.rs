//! A chain from several partitions, whole and with faults.

use super::*;

const USER: Uuid = Uuid::from_u128(1);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Positions of a source, each with the second of its commit.
const WHOLE: [(&str, i64); 5] =
    [("0/10;0;0/0", 1), ("0/20;0;0/10", 2), ("0/20;1;0/10", 2), ("1/0;0;0/20", 3), ("1/8;0;1/0", 4)];

fn add(sources: &mut Sources, (text, second): (&str, i64)) -> Option<Check> {
    let position = ChainPosition::parse(text).unwrap();
    let of_user = Some(("PaymentTopic", USER));
    let emission = Emission { source: "payments", position, at: at(second), of_user };
    sources.add(&emission).map(|found| found.check)
}

/// As [`add`], of a user of its own: its order says nothing.
fn add_alone(sources: &mut Sources, (text, second): (&str, i64)) {
    let position = ChainPosition::parse(text).unwrap();
    let emission = Emission { source: "payments", position, at: at(second), of_user: None };
    assert_eq!(sources.add(&emission), None);
}

fn judge(sources: &mut Sources, settled: i64) -> usize {
    sources.judge(&[("payments".to_owned(), at(settled))].into()).len()
}

fn fresh() -> Sources {
    Sources::after(BTreeMap::new(), at(0))
}

#[test]
fn a_whole_chain_from_several_partitions_and_with_repetitions_holds() {
    let mut sources = fresh();
    for index in [3, 4, 0, 0, 1, 3, 2, 1, 4] {
        add_alone(&mut sources, WHOLE[index]);
    }
    assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 0));
    assert!(sources.judged_up_to(&sources.last()));
}

#[test]
fn a_gap_is_reported_once_and_only_when_it_stays() {
    for missing in 1..4 {
        let mut sources = fresh();
        for (index, position) in WHOLE.into_iter().enumerate().filter(|(index, _)| *index != missing) {
            assert!(index < WHOLE.len());
            add_alone(&mut sources, position);
        }
        // What is not settled is not judged.
        assert_eq!(judge(&mut sources, 0), 0);
        assert_eq!(judge(&mut sources, 10), 0, "seen once, without {missing}");
        // The last record of a commit is missed by its row.
        let expected = usize::from(missing != 2);
        assert_eq!(judge(&mut sources, 10), expected, "without {missing}");
        assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 0), "without {missing}");
        assert!(sources.judged_up_to(&sources.last()));
    }
}

#[test]
fn a_gap_that_is_filled_is_none() {
    let mut sources = fresh();
    [0, 2, 3, 4].into_iter().for_each(|index| add_alone(&mut sources, WHOLE[index]));
    assert_eq!(judge(&mut sources, 10), 0);
    add_alone(&mut sources, WHOLE[1]);
    assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 0));
}

#[test]
fn it_goes_on_after_a_known_position() {
    let known = ChainPosition::parse("0/20;1;0/10").unwrap();
    let mut sources = Sources::after([("payments".to_owned(), known)].into(), at(100));
    // Older positions are repetitions, however many of them are not here.
    add_alone(&mut sources, WHOLE[1]);
    assert_eq!(sources.last().get("payments"), Some(&known));
    [3, 4].into_iter().for_each(|index| add_alone(&mut sources, WHOLE[index]));
    assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 0));
    let mut sources = Sources::after([("payments".to_owned(), known)].into(), at(100));
    add_alone(&mut sources, WHOLE[4]);
    assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 1));
}

#[test]
fn a_source_that_is_not_known_is_followed_from_a_time_on() {
    let mut sources = Sources::after(BTreeMap::new(), at(2));
    WHOLE.into_iter().for_each(|position| add_alone(&mut sources, position));
    assert_eq!((judge(&mut sources, 10), judge(&mut sources, 10)), (0, 0));
}

#[test]
fn the_first_emissions_of_a_user_are_in_order() {
    let mut sources = fresh();
    for (position, expected) in [
        (WHOLE[0], None),
        (WHOLE[3], None),
        // A repetition is none of the first emissions.
        (WHOLE[0], None),
        (WHOLE[1], Some(Check::T2)),
        (WHOLE[1], None),
        (WHOLE[4], None),
    ] {
        assert_eq!(add(&mut sources, position), expected, "{position:?}");
    }
}

#[test]
fn a_restored_database_is_followed_on_its_new_chain() {
    let mut sources = fresh();
    WHOLE.into_iter().for_each(|position| add_alone(&mut sources, position));
    assert_eq!(judge(&mut sources, 10), 0);
    add_alone(&mut sources, ("0/18;0;0/0", 50));
    add_alone(&mut sources, ("0/28;0;0/20", 51));
    assert_eq!(
        (judge(&mut sources, 60), judge(&mut sources, 60)),
        (0, 1),
        "0/20 is missing on the new chain"
    );
}
