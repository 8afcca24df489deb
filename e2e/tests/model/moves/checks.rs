//! The exhaustive checks of moves, and the mistakes that they must find.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::machine::{Bounds, Break, Moves};
use super::properties as p;
use crate::checks::say;

/// One move. Its mover is killed, its fence stays too long, an operator aborts.
const MOVER: Bounds =
    Bounds { moves: 1, writes: 2, transactions: 2, promotions: 0, kills: 1, lifts: 1, aborts: true };
/// One move, and standbys that become primaries.
const PROMOTIONS: Bounds = Bounds { promotions: 2, kills: 0, lifts: 0, aborts: false, ..MOVER };
/// There and back, with a mover that is killed.
const THERE_AND_BACK: Bounds = Bounds { moves: 2, lifts: 0, aborts: false, ..MOVER };
/// One fault of each kind.
const TOGETHER: Bounds = Bounds { writes: 1, promotions: 1, aborts: false, ..MOVER };

fn exhaust(name: &str, bounds: Bounds, reached: &'static [&'static str]) {
    let begun = Instant::now();
    let checker = Moves { bounds, broken: None, reached }.checker().threads(2).spawn_bfs().join();
    say(&format!(
        "moves {name}: {} states, {} steps, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    ));
    let found = checker.discoveries();
    for (property, _) in p::ALWAYS {
        if let Some(path) = found.get(property) {
            panic!(
                "{name}: {property} is broken by {:#?}\n{:#?}",
                path.clone().into_actions(),
                path.last_state()
            );
        }
    }
    for property in reached {
        assert!(found.contains_key(property), "{name}: never reached: {property}");
    }
    assert!(checker.is_done(), "{name}: not every state was visited");
}

fn breaks(broken: Break, bounds: Bounds, property: &'static str) {
    let moves = Moves { bounds, broken: Some(broken), reached: &[] };
    let found = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = moves.checker().finish_when(found).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("{broken:?} is not found: {property} holds in all {} states", checker.unique_state_count());
    };
    let mut story = format!("{broken:?} breaks {property}, {} states:", checker.unique_state_count());
    for action in path.into_actions() {
        let _ = write!(story, " {action:?};");
    }
    say(&story);
}

#[test]
fn a_killed_mover() {
    let reached =
        &[p::MOVED_AFTER_WRITES, p::ROLLED_BACK, p::LIFTED_THEN_MOVED, p::ORPHANED_GRANT, p::ORPHANED_FENCE];
    exhaust("a killed mover", MOVER, reached);
}

#[test]
fn promotions() {
    let reached = &[
        p::MOVED_AFTER_WRITES,
        p::PROMOTED_BEFORE,
        p::PROMOTED_AFTER,
        p::UNEMITTED_FENCED,
        p::AHEAD_OF_STANDBY,
    ];
    exhaust("promotions", PROMOTIONS, reached);
}

#[test]
fn there_and_back() {
    exhaust("there and back", THERE_AND_BACK, &[p::THERE_AND_BACK]);
}

#[test]
fn one_fault_of_each_kind() {
    exhaust(
        "one fault of each kind",
        TOGETHER,
        &[p::LIFTED_THEN_MOVED, p::PROMOTED_BEFORE, p::PROMOTED_AFTER],
    );
}

#[test]
fn ownership_not_checked() {
    breaks(Break::OwnershipNotChecked, MOVER, p::WRITABLE_ONCE);
    breaks(Break::OwnershipNotChecked, MOVER, p::READS_COMPLETE);
}

#[test]
fn snapshot_older_than_the_fence() {
    breaks(Break::SnapshotOlderThanFence, MOVER, p::WRITABLE_ONCE);
}

#[test]
fn fence_without_waiting_for_the_lsn() {
    breaks(Break::NoWaitForLsn, MOVER, p::ACCEPTED_KEPT);
}

#[test]
fn rollback_without_barring_the_target() {
    breaks(Break::RollbackWithoutBar, MOVER, p::WRITABLE_ONCE);
}

#[test]
fn grant_before_the_sources_relay() {
    breaks(Break::GrantBeforeRelay, MOVER, p::EVENTS_IN_ORDER);
}

#[test]
fn emitted_before_the_standby() {
    breaks(Break::EmittedBeforeStandby, PROMOTIONS, p::EVENTS_HAVE_ROWS);
}

#[test]
fn removal_ignores_the_record() {
    breaks(Break::RemovalIgnoresRecord, THERE_AND_BACK, p::ACCEPTED_KEPT);
}

#[test]
fn emptied_while_copying() {
    breaks(Break::EmptiedWhileCopying, MOVER, p::ACCEPTED_KEPT);
}

#[test]
fn incarnations_not_compared() {
    breaks(Break::IncarnationsNotCompared, PROMOTIONS, p::ACCEPTED_KEPT);
}

#[test]
fn copies_emitted() {
    breaks(Break::CopiesEmitted, PROMOTIONS, p::EVENTS_HAVE_ROWS);
}

#[test]
fn closed_though_fenced() {
    breaks(Break::ClosedThoughFenced, MOVER, p::MOVES_END);
}
