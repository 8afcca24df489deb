//! The exhaustive checks. Each prints how many states there are, and fails if a single one breaks a promise, or
//! if something that it is about is never reached.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use stateright::{Checker, Model};

use crate::bounds::{Bounds, Keys, NOBODY, Others, PLAIN};
use crate::coro::Coro;
use crate::properties as p;

/// Everything a processor and a gateway can do to one payment.
pub const CALLS: Bounds = Bounds { attempts: 3, late: true, foreign: true, ..PLAIN };
/// Several sweepers and inquiries about the same charge.
pub const SWEEPERS: Bounds = Bounds { attempts: 2, late: true, sweeps: 2, inquiries: 2, ..PLAIN };
/// Any number of repeated tellings, to any reader, from any position; work again and again.
pub const RE_EMITTING: Bounds = Bounds { attempts: 2, re_emitted: true, ..PLAIN };
/// Reads that are stale when they write, and commits without an answer.
pub const RACES: Bounds = Bounds { attempts: 2, races: true, faults: Some(3), ..PLAIN };
/// A lost slot.
pub const LOST_SLOT: Bounds = Bounds { attempts: 2, lost_slot: true, ..PLAIN };
/// A gateway that knows a key only once its charge can be found: sending again rests on its promise.
pub const ONCE_VISIBLE: Bounds =
    Bounds { attempts: 3, late: true, foreign: true, timely: true, keys: Keys::OnceVisible, ..PLAIN };
/// A gateway that ignores keys: nothing is sent again, and a surplus charge is voided.
pub const IGNORED: Bounds =
    Bounds { attempts: 3, late: true, foreign: true, timely: true, keys: Keys::Ignored, ..PLAIN };
/// Somebody else writes to the work queue: another amount is charged than was held.
pub const FORGED: Bounds = Bounds { attempts: 2, others: Others { forger: true, ..NOBODY }, ..PLAIN };
/// Two operators beside everything that a processor does; and beside forged work, which they end.
pub const OPERATORS: Bounds =
    Bounds { attempts: 2, late: true, others: Others { operators: true, ..NOBODY }, ..PLAIN };
pub const FORGED_RESOLVED: Bounds =
    Bounds { attempts: 1, others: Others { forger: true, operators: true, ..NOBODY }, ..PLAIN };
/// Messages that services set aside, and operators who deal with them at any time: alone, and while events are emitted again and reads
/// are stale.
pub const PARKED: Bounds = Bounds { attempts: 2, others: Others { set_aside: 2, ..NOBODY }, ..PLAIN };
pub const PARKED_TOGETHER: Bounds = Bounds {
    others: Others { set_aside: 1, ..NOBODY },
    re_emitted: true,
    races: true,
    lost_slot: true,
    faults: Some(3),
    ..PLAIN
};
/// A user without funds, one without an account.
pub const NO_FUNDS: Bounds =
    Bounds { deposit: Some(4), re_emitted: true, races: true, lost_slot: true, ..PLAIN };
pub const NO_ACCOUNT: Bounds = Bounds { deposit: None, ..NO_FUNDS };
/// Everything together, a few faults at a time.
pub const TOGETHER: Bounds = Bounds {
    attempts: 2,
    late: true,
    re_emitted: true,
    races: true,
    lost_slot: true,
    faults: Some(2),
    ..PLAIN
};
/// Two payments on one account, with funds for one of them, whichever; for both; for neither.
pub const FUNDS_FOR_ONE: Bounds =
    Bounds { amounts: &[5, 3], deposit: Some(7), re_emitted: true, faults: Some(2), ..PLAIN };
pub const FUNDS_FOR_BOTH: Bounds = Bounds { deposit: Some(8), faults: Some(1), ..FUNDS_FOR_ONE };
pub const FUNDS_FOR_NONE: Bounds = Bounds { deposit: Some(2), ..FUNDS_FOR_ONE };

/// One at a time: each uses all cores, and memory is for one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const THREADS: usize = 2;

/// Visits every state there is.
fn exhaust(name: &str, bounds: Bounds, reached: &'static [&'static str]) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    let checker = Coro { bounds, broken: None, reached }.checker().threads(THREADS).spawn_bfs().join();
    say(&format!(
        "model {name}: {} states, {} steps, {} deep, {:.1} s",
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

/// Shown when the test passes, too: the numbers are part of the promise.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn calls() {
    let reached = &[
        p::COMPLETED,
        p::DECLINED,
        p::EXPIRED,
        p::EXPIRED_WAITING,
        p::CANCELLED,
        p::CANCELLED_EARLY,
        p::CANCELLED_WAITING,
        p::CANCEL_TOO_LATE,
        p::UNKNOWN_COMPLETED,
        p::UNKNOWN_DECLINED,
        p::RESENT,
        p::LATE_ANSWER,
        p::LATE_REQUEST,
        p::STALE_LAPSE,
    ];
    exhaust("calls", CALLS, reached);
}

#[test]
fn several_sweepers() {
    let reached = &[p::COMPLETED, p::UNKNOWN_COMPLETED, p::UNKNOWN_DECLINED, p::RESENT, p::STALE_LAPSE];
    exhaust("several sweepers", SWEEPERS, reached);
}

#[test]
fn re_emitted() {
    exhaust(
        "re-emitted",
        RE_EMITTING,
        &[p::COMPLETED, p::CANCELLED, p::RE_EMITTED, p::REDELIVERED, p::DROPPED],
    );
}

#[test]
fn races() {
    exhaust("races", RACES, &[p::COMPLETED, p::CANCELLED, p::RACE_LOST, p::CANCEL_TOO_LATE, p::LATE_ANSWER]);
}

#[test]
fn a_lost_slot() {
    exhaust("a lost slot", LOST_SLOT, &[p::COMPLETED, p::DECLINED, p::CANCELLED, p::CANCELLED_EARLY]);
}

#[test]
fn keys_known_once_visible() {
    let reached = &[p::COMPLETED, p::UNKNOWN_COMPLETED, p::UNKNOWN_DECLINED, p::RESENT, p::LATE_ANSWER];
    exhaust("keys known once visible", ONCE_VISIBLE, reached);
}

#[test]
fn keys_ignored() {
    exhaust("keys ignored", IGNORED, &[p::COMPLETED, p::UNKNOWN_COMPLETED, p::UNKNOWN_DECLINED, p::VOIDED]);
}

#[test]
fn forged_work() {
    exhaust("forged work", FORGED, &[p::COMPLETED, p::SET_ASIDE]);
}

#[test]
fn operators() {
    let reached = &[p::COMPLETED, p::RESOLVED_COMPLETED, p::RESOLVED_FAILED, p::RESOLVED_UNCALLED];
    exhaust("operators", OPERATORS, reached);
}

#[test]
fn forged_work_that_operators_end() {
    let reached = &[p::COMPLETED, p::SET_ASIDE, p::RESOLVED_FAILED, p::RESOLVED_UNCALLED];
    exhaust("forged work that operators end", FORGED_RESOLVED, reached);
}

#[test]
fn parked_messages_that_operators_deal_with() {
    let reached = &[p::RETRIED_AT_PAYMENTS, p::RETRIED_AT_BALANCE, p::RETRIED_AT_PROCESSOR, p::DISMISSED];
    exhaust("parked", PARKED, reached);
    exhaust("parked, three faults", PARKED_TOGETHER, reached);
}

#[test]
fn no_funds() {
    exhaust("no funds", NO_FUNDS, &[p::REJECTED, p::RE_EMITTED, p::RACE_LOST]);
    exhaust("no account", NO_ACCOUNT, &[p::REJECTED, p::RE_EMITTED, p::RACE_LOST]);
}

#[test]
fn everything_together() {
    let reached = &[
        p::COMPLETED,
        p::DECLINED,
        p::EXPIRED,
        p::CANCELLED,
        p::UNKNOWN_COMPLETED,
        p::UNKNOWN_DECLINED,
        p::RESENT,
        p::LATE_ANSWER,
        p::LATE_REQUEST,
        p::STALE_LAPSE,
        p::REDELIVERED,
        p::RACE_LOST,
    ];
    exhaust("everything, two faults", TOGETHER, reached);
}

#[test]
fn two_payments_on_one_account() {
    exhaust("funds for one of two", FUNDS_FOR_ONE, &[p::ONE_REJECTED, p::CANCELLED]);
    exhaust("funds for both", FUNDS_FOR_BOTH, &[p::BOTH_COMPLETED]);
    exhaust("funds for neither", FUNDS_FOR_NONE, &[p::BOTH_REJECTED]);
}

/// More of everything: minutes, so by hand (`-- --ignored`).
#[test]
#[ignore = "minutes"]
fn everything_together_for_longer() {
    exhaust("everything, three attempts", Bounds { attempts: 3, ..TOGETHER }, &[p::EXPIRED_WAITING]);
    exhaust("funds for both, two faults", Bounds { faults: Some(2), ..FUNDS_FOR_BOTH }, &[p::BOTH_COMPLETED]);
}
