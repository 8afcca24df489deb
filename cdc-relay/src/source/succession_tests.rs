//! The order of relays for a source, and what one that waits does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;

fn instances(ports: &BTreeSet<u16>) -> Vec<Instance> {
    ports.iter().map(|port| Instance::new("host", port)).collect()
}

fn candidate(instance: &Instance, slot: &str) -> Candidate {
    Candidate::new(Membership { instance: instance.clone(), shares: true }, slot)
}

/// The relay that comes first for each slot.
fn owners(instances: &[Instance], slots: u32) -> BTreeMap<String, Instance> {
    let first = |slot: &str| {
        let is_first = |one: &&Instance| {
            let others: Vec<Instance> = instances.iter().filter(|other| other != one).cloned().collect();
            candidate(one, slot).place(&others) == 0
        };
        instances.iter().find(is_first).cloned()
    };
    (0..slots).filter_map(|slot| Some((format!("slot_{slot}"), first(&format!("slot_{slot}"))?))).collect()
}

proptest! {
    /// The faults it prevents: two relays that ask each other for one slot for ever, and sources that move without need.
    #[test]
    fn relays_agree_on_the_order_and_one_that_goes_moves_only_its_own_share(ports in btree_set(any::<u16>(), 2..8)) {
        let all = instances(&ports);
        let before = owners(&all, 40);
        prop_assert_eq!(before.len(), 40, "each slot has one relay that comes first");
        let mut places: Vec<u32> = all.iter().map(|one| {
            let others: Vec<Instance> = all.iter().filter(|other| *other != one).cloned().collect();
            candidate(one, "slot_0").place(&others)
        }).collect();
        places.sort_unstable();
        prop_assert!(places.into_iter().eq(0..all.len() as u32), "no two have one place");
        let (gone, rest) = all.split_first().expect("two at least");
        for (slot, owner) in owners(rest, 40) {
            prop_assert!(before[&slot] == owner || before[&slot] == *gone, "{slot} moved");
        }
    }
}

#[test]
fn the_sources_spread_over_the_relays() {
    let all = instances(&BTreeSet::from([9600, 9601, 9602]));
    let mut shares = BTreeMap::<String, u32>::new();
    for owner in owners(&all, 300).into_values() {
        *shares.entry(owner.0).or_default() += 1;
    }
    assert_eq!(shares.len(), 3);
    assert!(shares.values().all(|share| (60..=140).contains(share)), "{shares:?}");
}

#[test]
fn a_session_that_waits_names_the_relay_and_the_slot() {
    let (one, other) = (Instance::new("host", 1), Instance::new("host", 2));
    let name = candidate(&one, "slot").session_name();
    assert!(name.len() < 64, "{name}");
    assert_eq!(candidate(&other, "slot").waiting(&name), Some(one.clone()));
    assert_eq!(candidate(&one, "another").waiting(&name), None);
    assert_eq!(candidate(&one, "slot").waiting("cdc-relay snapshot"), None);
}

#[test]
fn a_reader_yields_to_a_fresh_request_for_its_slot_by_a_relay_before_it() {
    let (one, other) = (Instance::new("host", 1), Instance::new("host", 2));
    let [one, other] = [one, other].map(|instance| candidate(&instance, "slot"));
    let (first, last) =
        if one.place(std::slice::from_ref(&other.instance)) == 0 { (one, other) } else { (other, one) };
    let (now, second) = (PgTime(1_000_000_000), 1_000_000);
    assert!(last.yields_to(&first.request(), PgTime(now.0 - second), now));
    // The server's clock was set back in between.
    assert!(last.yields_to(&first.request(), PgTime(now.0 + second), now));
    assert!(!last.yields_to(&first.request(), PgTime(now.0 - 31 * second), now), "it is old");
    assert!(!first.yields_to(&last.request(), now, now), "it comes behind");
    assert!(!first.yields_to(&first.request(), now, now), "it is its own");
    let of_another_slot = candidate(&first.instance, "another").request();
    assert!(!last.yields_to(&of_another_slot, now, now));
    let keeps = Candidate { shares: false, ..last.clone() };
    assert!(!keeps.yields_to(&first.request(), now, now), "it does not share");
    let text = serde_json::to_vec(&first.request()).unwrap();
    assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), first.request());
}

#[test]
fn a_free_slot_is_taken_in_turn_and_by_somebody_in_any_case() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut first = StandbyWait::default();
    assert!(first.is_due(true, at(0)));
    assert_eq!(first.next(true, 0, at(0)), Move::Take);
    // One before it seems to wait, and does not take it: perhaps it is suspended.
    let mut second = StandbyWait::default();
    assert_eq!(second.next(true, 1, at(0)), Move::Wait);
    assert_eq!(second.next(true, 1, at(600)), Move::Wait);
    assert_eq!(second.next(true, 1, at(700)), Move::Take);
    // The one before it took it, and lost it again.
    assert!(!second.is_due(false, at(800)));
    assert_eq!(second.next(true, 1, at(900)), Move::Wait);
    let mut last = StandbyWait::default();
    assert_eq!(last.next(true, 9, at(0)), Move::Wait);
    assert_eq!(last.next(true, 9, at(1_400)), Move::Take);
}

#[test]
fn a_relay_asks_after_a_while_if_it_comes_first_and_then_ever_more_rarely() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut standby_wait = StandbyWait::default();
    assert!(!standby_wait.is_due(false, at(0)));
    assert!(!standby_wait.is_due(false, at(4)));
    assert!(standby_wait.is_due(false, at(5)));
    assert_eq!(standby_wait.next(false, 1, at(5)), Move::Wait, "another one comes before it");
    assert_eq!(standby_wait.next(false, 0, at(5)), Move::Ask);
    for (not_yet, then) in [(64, 65), (184, 185), (424, 425)] {
        assert!(!standby_wait.is_due(false, at(not_yet)), "{not_yet}");
        assert!(standby_wait.is_due(false, at(then)), "{then}");
        assert_eq!(standby_wait.next(false, 0, at(then)), Move::Ask);
    }
    // It read the slot for a moment: it settles again, and is as reluctant as before.
    standby_wait.ends();
    standby_wait.has_read(Duration::from_secs(59));
    assert!(!standby_wait.is_due(false, at(1_000)));
    assert!(standby_wait.is_due(false, at(1_005)));
    assert_eq!(standby_wait.next(false, 0, at(1_005)), Move::Ask);
    assert!(!standby_wait.is_due(false, at(1_100)));
    // It read the slot for a while: so it can.
    standby_wait.ends();
    standby_wait.has_read(Duration::from_secs(60));
    assert!(!standby_wait.is_due(false, at(1_500)));
    assert!(standby_wait.is_due(false, at(1_505)));
    assert_eq!(standby_wait.next(false, 0, at(1_505)), Move::Ask);
    assert!(!standby_wait.is_due(false, at(1_564)));
    assert!(standby_wait.is_due(false, at(1_565)));
}
