//! A chain from several partitions, whole and with faults.

use super::*;

const USER: Uuid = Uuid::from_u128(1);
const CHAIN: &str = "payments/2026-11-29T12:15:02.123456Z";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Positions of a chain, each with the second of its commit.
const WHOLE: [(&str, i64); 5] =
    [("0/10;0;0/0", 1), ("0/20;0;0/10", 2), ("0/20;1;0/10", 2), ("1/0;0;0/20", 3), ("1/8;0;1/0", 4)];

fn add(chains: &mut Chains, (text, second): (&str, i64)) -> Option<Check> {
    let position = ChainPosition::parse(text).unwrap();
    let of_user = Some(("PaymentTopic", USER));
    let emission = Emission { chain: CHAIN, source: Some("payments"), position, at: at(second), of_user };
    chains.add(&emission).map(|found| found.check)
}

/// As [`add`], of a user of its own: its order says nothing.
fn add_alone(chains: &mut Chains, (text, second): (&str, i64)) {
    let position = ChainPosition::parse(text).unwrap();
    let emission =
        Emission { chain: CHAIN, source: Some("payments"), position, at: at(second), of_user: None };
    assert_eq!(chains.add(&emission), None);
}

fn judge(chains: &mut Chains, settled: i64) -> usize {
    chains.judge(&[("payments".to_owned(), at(settled))].into()).len()
}

fn fresh() -> Chains {
    Chains::after(BTreeMap::new(), at(0))
}

#[test]
fn a_whole_chain_from_several_partitions_and_with_repetitions_holds() {
    let mut chains = fresh();
    for index in [3, 4, 0, 0, 1, 3, 2, 1, 4] {
        add_alone(&mut chains, WHOLE[index]);
    }
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0));
    assert!(chains.judged_up_to(&chains.last()));
}

#[test]
fn a_gap_is_reported_once_and_only_when_it_stays() {
    for missing in 1..4 {
        let mut chains = fresh();
        for (index, position) in WHOLE.into_iter().enumerate().filter(|(index, _)| *index != missing) {
            assert!(index < WHOLE.len());
            add_alone(&mut chains, position);
        }
        // What is not settled is not judged.
        assert_eq!(judge(&mut chains, 0), 0);
        assert_eq!(judge(&mut chains, 10), 0, "seen once, without {missing}");
        // The last record of a commit is missed by its row.
        let expected = usize::from(missing != 2);
        assert_eq!(judge(&mut chains, 10), expected, "without {missing}");
        assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0), "without {missing}");
        assert!(chains.judged_up_to(&chains.last()));
    }
}

#[test]
fn a_gap_that_is_filled_is_none() {
    let mut chains = fresh();
    [0, 2, 3, 4].into_iter().for_each(|index| add_alone(&mut chains, WHOLE[index]));
    assert_eq!(judge(&mut chains, 10), 0);
    add_alone(&mut chains, WHOLE[1]);
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0));
}

#[test]
fn it_goes_on_after_a_known_position() {
    let known = ChainPosition::parse("0/20;1;0/10").unwrap();
    let mut chains = Chains::after([(CHAIN.to_owned(), known)].into(), at(100));
    // Older positions are repetitions, however many of them are not here.
    add_alone(&mut chains, WHOLE[1]);
    assert_eq!(chains.last().get(CHAIN), Some(&known));
    [3, 4].into_iter().for_each(|index| add_alone(&mut chains, WHOLE[index]));
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0));
    let mut chains = Chains::after([(CHAIN.to_owned(), known)].into(), at(100));
    add_alone(&mut chains, WHOLE[4]);
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 1));
}

#[test]
fn a_chain_that_is_not_known_is_followed_from_a_time_on() {
    let mut chains = Chains::after(BTreeMap::new(), at(2));
    WHOLE.into_iter().for_each(|position| add_alone(&mut chains, position));
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0));
}

#[test]
fn the_first_emissions_of_a_user_are_in_order() {
    let mut chains = fresh();
    for (position, expected) in [
        (WHOLE[0], None),
        (WHOLE[3], None),
        // A repetition is none of the first emissions.
        (WHOLE[0], None),
        (WHOLE[1], Some(Check::T2)),
        (WHOLE[1], None),
        (WHOLE[4], None),
    ] {
        assert_eq!(add(&mut chains, position), expected, "{position:?}");
    }
}

/// The false alarms it prevents: two shards, and a slot that was made anew in a restored database.
#[test]
fn two_chains_of_one_source_say_nothing_about_each_other() {
    let mut chains = fresh();
    WHOLE.into_iter().for_each(|position| assert_eq!(add(&mut chains, position), None));
    let mut add_other = |text, second| {
        let position = ChainPosition::parse(text).unwrap();
        let of_user = Some(("PaymentTopic", USER));
        let emission = Emission {
            chain: "payments-1/2026",
            source: Some("payments"),
            position,
            at: at(second),
            of_user,
        };
        chains.add(&emission)
    };
    assert_eq!(add_other("0/18;0;0/0", 2), None, "an earlier position of the same user");
    assert_eq!(add_other("0/28;0;0/20", 3), None);
    let found = [judge(&mut chains, 60), judge(&mut chains, 60)];
    assert_eq!(found, [0, 1], "0/20 is missing on the other chain, though this one has it");
    assert!(chains.judged_up_to(&chains.last()));
}

/// A dead letter has no `ce_source`, and is a link of its chain.
#[test]
fn a_record_without_a_source_is_a_member_of_its_chain() {
    let mut chains = fresh();
    for (index, (text, second)) in WHOLE.into_iter().enumerate() {
        let position = ChainPosition::parse(text).unwrap();
        let source = (index % 2 == 1).then_some("payments");
        chains.add(&Emission { chain: CHAIN, source, position, at: at(second), of_user: None });
    }
    assert_eq!((judge(&mut chains, 10), judge(&mut chains, 10)), (0, 0));
    assert!(chains.judged_up_to(&chains.last()));
    assert_eq!(chains.newest(), [("payments".to_owned(), at(4))].into());
}
