//! The checker's teeth: each mistake of [`Break`] must be found, as a breach of the property named here. A checker
//! that overlooks one proves nothing about the real thing.

use std::collections::BTreeSet;
use std::fmt::Write;

use stateright::{Checker, HasDiscoveries, Model};

use crate::bounds::{Bounds, Break};
use crate::checks::{self, say};
use crate::coro::Coro;
use crate::properties as p;

/// The same bounds as in the exhaustive checks, where nothing is found.
fn breaks(broken: Break, bounds: Bounds, property: &'static str) {
    let coro = Coro { bounds, broken: Some(broken), reached: &[] };
    let found = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = coro.checker().finish_when(found).spawn_bfs().join();
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
fn release_on_timeout() {
    breaks(Break::ReleaseOnTimeout, checks::CALLS, p::G2);
}

#[test]
fn unnamed_decline_believed() {
    breaks(Break::UnnamedDeclineBelieved, checks::CALLS, p::G2);
}

#[test]
fn capture_without_comparison() {
    breaks(Break::CaptureWithoutComparison, checks::FORGED, p::G1);
}

#[test]
fn acknowledge_before_commit() {
    breaks(Break::AckBeforeCommit, checks::CALLS, p::S1);
}

#[test]
fn offset_before_commit() {
    breaks(Break::OffsetBeforeCommit, checks::CALLS, p::S1);
}

#[test]
fn missing_taken_for_a_duplicate() {
    breaks(Break::MissingTakenForDuplicate, checks::CALLS, p::S1);
}

#[test]
fn second_gateway_key() {
    breaks(Break::SecondGatewayKey, checks::CALLS, p::G1);
}

#[test]
fn redis_before_commit() {
    breaks(Break::RedisBeforeCommit, checks::CALLS, p::S1);
}

#[test]
fn cancel_before_hold() {
    breaks(Break::CancelBeforeHold, checks::CALLS, p::T6);
}

#[test]
fn resend_before_visibility() {
    breaks(Break::ResendBeforeVisibility, checks::ONCE_VISIBLE, p::G1);
}

#[test]
fn not_found_is_a_decline() {
    breaks(Break::NotFoundIsDecline, checks::CALLS, p::G2);
}

#[test]
fn outcome_without_attempt_guard() {
    breaks(Break::OutcomeWithoutAttemptGuard, checks::RACES, p::G2);
}

#[test]
fn stale_lapse_ends_a_fresh_attempt() {
    breaks(Break::LapseWithoutAttemptGuard, checks::CALLS, p::T6);
}

#[test]
fn exposure_forgotten() {
    breaks(Break::ExposureForgotten, checks::CALLS, p::G2);
}

#[test]
fn deadline_ends_calls() {
    breaks(Break::DeadlineEndsCalls, checks::CALLS, p::G2);
}

#[test]
fn cancel_ends_calls() {
    breaks(Break::CancelEndsCalls, checks::CALLS, p::G2);
}

#[test]
fn call_before_intent() {
    breaks(Break::CallBeforeIntent, checks::CALLS, p::G3);
}

#[test]
fn money_moves_at_every_emission() {
    breaks(Break::MoneyMovesAtEveryEmission, checks::FUNDS_FOR_BOTH, p::M5);
}

#[test]
fn deltas_not_from_returned_rows() {
    breaks(Break::DeltasNotFromRows, checks::FUNDS_FOR_BOTH, p::M3);
}

#[test]
fn no_version_guard() {
    breaks(Break::NoVersionGuard, checks::RACES, p::S2);
}

#[test]
fn early_cancel_forgotten() {
    breaks(Break::EarlyCancelForgotten, checks::CALLS, p::C1);
}

#[test]
fn dismissed_untried() {
    breaks(Break::DismissedUntried, checks::PARKED, p::S1);
}

#[test]
fn retry_recorded_alone() {
    breaks(Break::RetryRecordedAlone, checks::PARKED, p::S1);
}

#[test]
fn stale_confirmation() {
    breaks(Break::StaleConfirmation, checks::OPERATORS, p::G2);
}

#[test]
fn recorded_cancel_ignored() {
    breaks(Break::RecordedCancelIgnored, checks::LOST_SLOT, p::S1);
}
