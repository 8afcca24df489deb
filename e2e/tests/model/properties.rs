//! The properties that always hold, by the names of docs/AUDIT.md, and states that must be reached, so that they hold of
//! something.

use payments_svc::saga::Status as Payment;

use crate::balance_db::Entries;
use crate::coro::Coro;
use crate::processor_db::{Charge, Status};
use crate::state::{CallAt, Life, Queue, Said, State, Task, Wrong, Zombie};

type Condition = fn(&Coro, &State) -> bool;

pub const M1: &str = "M1 deposits = available + held + captured";
pub const M2: &str = "M2 no balance below zero";
pub const M3: &str = "M3 the account is the fold of the ledger";
pub const M4: &str = "M4 what has ended holds nothing";
pub const M5: &str = "M5 a hold is captured or released, once";
pub const G1: &str = "G1 completed: charged exactly once, that amount";
pub const G2: &str = "G2 rejected, failed, cancelled: not charged";
pub const G3: &str = "G3 no charge without a committed intent";
pub const G4: &str = "G4 a charge ends by the gateway's word, or if none was made";
pub const S1: &str = "S1 everything ends once faults heal";
pub const S2: &str = "S2 only steps that are, versions without gaps";
pub const C1: &str = "C1 cancelled before its hold: never called";
pub const T6: &str = "T6 nothing parked, missing or impossible";

pub const ALWAYS: &[(&str, Condition)] = &[
    (M1, |coro, state| {
        let captured: i64 =
            each(coro, state).map(|(life, amount)| i64::from(life.entries.captures) * amount).sum();
        let there = state.account.map_or(0, |account| account.available + account.held);
        coro.bounds.deposit.unwrap_or(0) == there + captured
    }),
    (M2, |_, state| state.account.is_none_or(|account| account.available >= 0 && account.held >= 0)),
    (M3, |coro, state| {
        let Some(account) = state.account else { return state.lives.iter().all(|l| l.entries.holds == 0) };
        let fold = each(coro, state).fold(
            (coro.bounds.deposit.unwrap_or(0), 0),
            |(available, held), (life, amount)| {
                let [holds, captures, releases] =
                    [life.entries.holds, life.entries.captures, life.entries.releases]
                        .map(|n| i64::from(n) * amount);
                (available - holds + releases, held + holds - captures - releases)
            },
        );
        fold == (account.available, account.held)
    }),
    (M4, |_, state| {
        let is_open = |life: &Life| life.entries.holds > life.entries.captures + life.entries.releases;
        state.lives.iter().all(|life| !(life.has_ended() && is_open(life)))
    }),
    (M5, |_, state| {
        state.lives.iter().all(|life| {
            let entries = life.entries;
            entries.holds + entries.rejections <= 1 && entries.captures + entries.releases <= entries.holds
        })
    }),
    (G1, |_, state| {
        let charged = |life: &Life| life.books.standing == 1 && !life.charge.is_some_and(|c| c.forged);
        state.lives.iter().all(|life| life.row.status != Payment::Completed || charged(life))
    }),
    (G2, |_, state| {
        state.lives.iter().all(|life| match life.row.status {
            Payment::Rejected | Payment::Failed | Payment::Cancelled => life.books.standing == 0,
            Payment::Initiated | Payment::Authorized | Payment::Completed => true,
        })
    }),
    (G3, |_, state| state.lives.iter().all(|life| life.charge.is_some() || !life.called)),
    (G4, |_, state| {
        state.lives.iter().all(|life| match life.charge.map(|charge| charge.status) {
            // What operators have had given back is a charge of another amount, until its resolution is confirmed.
            Some(Status::Succeeded) => life.books.standing > 0 || (life.books.barred && is_forged(life)),
            Some(Status::Declined) => life.books.has_refused(),
            Some(Status::Expired | Status::Cancelled) => !life.called,
            None | Some(Status::Waiting | Status::Calling | Status::Unknown) => true,
        })
    }),
    (S1, |coro, state| {
        coro.healed(state)
            .is_some_and(|quiescent| quiescent.lives.iter().all(|life| is_quiescent(life) || is_parked(life)))
    }),
    (S2, |_, state| {
        let gapless = |life: &Life| life.row.version == life.row.commits;
        state.wrong != Some(Wrong::Transition) && state.lives.iter().all(gapless)
    }),
    (C1, |_, state| state.lives.iter().all(|life| !(life.cancelled_early && life.called))),
    // A forged message is parked, or the true one is; a person must look at it.
    (T6, |coro, state| {
        state.wrong.is_none() || (coro.bounds.others.forger && state.wrong == Some(Wrong::Parked))
    }),
];

fn is_forged(life: &Life) -> bool {
    life.charge.is_some_and(|charge| charge.forged)
}

/// The charged amount is not the held one: the hold stays, and so does the payment.
fn is_parked(life: &Life) -> bool {
    let Entries { holds, captures, releases, .. } = life.entries;
    let is_open = (holds, captures + releases) == (1, 0);
    life.charge.is_some_and(|charge| charge.forged) && is_open
}

/// The payment, its money and its charge have ended, and agree.
fn is_quiescent(life: &Life) -> bool {
    let (entries, charge) = (life.entries, life.charge.map(|charge| charge.status));
    match life.row.status {
        Payment::Initiated | Payment::Authorized => false,
        Payment::Completed => charge == Some(Status::Succeeded) && entries.captures == 1,
        Payment::Rejected => charge.is_none() && entries.rejections == 1,
        Payment::Failed => {
            matches!(charge, Some(Status::Declined | Status::Expired)) && entries.releases == 1
        }
        Payment::Cancelled => charge == Some(Status::Cancelled) && entries.releases == 1,
    }
}

pub const COMPLETED: &str = "completed";
pub const REJECTED: &str = "rejected";
pub const DECLINED: &str = "failed by a decline";
pub const EXPIRED: &str = "failed by its deadline";
pub const EXPIRED_WAITING: &str = "failed by its deadline after a call was not sent";
pub const CANCELLED: &str = "cancelled";
pub const CANCELLED_EARLY: &str = "cancelled before its hold";
pub const CANCELLED_WAITING: &str = "cancelled after a call was not sent";
pub const CANCEL_TOO_LATE: &str = "completed though to be cancelled";
pub const UNKNOWN_COMPLETED: &str = "unknown, then completed";
pub const UNKNOWN_DECLINED: &str = "unknown, then failed by a decline";
pub const RESENT: &str = "sent again, then completed";
pub const LATE_ANSWER: &str = "an answer after the lapse";
pub const LATE_REQUEST: &str = "a request that arrives after the charge has ended";
pub const STALE_LAPSE: &str = "a lapse observed in an attempt that is over";
pub const RE_EMITTED: &str = "re-emitted after the end";
pub const REDELIVERED: &str = "work again after the end";
pub const DROPPED: &str = "work that Redis knows to have ended";
pub const RACE_LOST: &str = "a read that is stale when it writes";
pub const SET_ASIDE: &str = "charged with another amount, held for ever";
pub const VOIDED: &str = "given back, then failed";
pub const RESOLVED_COMPLETED: &str = "completed by operators";
pub const RESOLVED_FAILED: &str = "failed by operators after a call";
pub const RESOLVED_UNCALLED: &str = "failed by operators without a call";
pub const RETRIED_AT_PAYMENTS: &str = "completed, and payments-svc has applied a parked message";
pub const RETRIED_AT_BALANCE: &str = "completed, and balance-svc has applied a parked message";
pub const RETRIED_AT_PROCESSOR: &str = "cancelled, and processor-svc has applied a parked message";
pub const DISMISSED: &str = "ended, and a message was dismissed that had its effect already";
pub const BOTH_COMPLETED: &str = "both completed";
pub const ONE_REJECTED: &str = "one completed, one rejected";
pub const BOTH_REJECTED: &str = "both rejected";

pub const SOMETIMES: &[(&str, Condition)] = &[
    (COMPLETED, |_, state| ends(state, Payment::Completed, |_| true)),
    (REJECTED, |_, state| ends(state, Payment::Rejected, |_| true)),
    (DECLINED, |_, state| ends(state, Payment::Failed, |c| c.status == Status::Declined && !c.exposed)),
    (EXPIRED, |_, state| ends(state, Payment::Failed, |c| c.status == Status::Expired)),
    (EXPIRED_WAITING, |_, state| {
        ends(state, Payment::Failed, |c| c.status == Status::Expired && c.attempt > 1)
    }),
    (CANCELLED, |_, state| ends(state, Payment::Cancelled, |_| true)),
    (CANCELLED_EARLY, |_, state| any(state, |l| l.row.status == Payment::Cancelled && l.cancelled_early)),
    (CANCELLED_WAITING, |_, state| ends(state, Payment::Cancelled, |c| c.attempt > 1)),
    (CANCEL_TOO_LATE, |_, state| {
        any(state, |l| l.row.status == Payment::Completed && l.row.cancel_requested)
    }),
    (UNKNOWN_COMPLETED, |_, state| ends(state, Payment::Completed, |c| c.exposed)),
    (UNKNOWN_DECLINED, |_, state| {
        ends(state, Payment::Failed, |c| c.status == Status::Declined && c.exposed)
    }),
    (RESENT, |_, state| ends(state, Payment::Completed, |c| c.exposed && c.attempt > 1)),
    (LATE_ANSWER, |_, state| {
        any(state, |life| {
            let unknown = life.charge.is_some_and(|charge| charge.status == Status::Unknown);
            let answer = |task: &Task| {
                matches!(task, Task::Call { at: CallAt::Ended { said: Said::Succeeded, .. }, .. })
            };
            unknown && life.tasks.iter().any(answer)
        })
    }),
    (LATE_REQUEST, |_, state| any(state, |life| life.charge_state().has_ended() && life.strays != 0)),
    (STALE_LAPSE, |_, state| {
        any(state, |life| {
            let stale = |task: &Task| matches!(task, Task::Sweep { from, .. } if attempt(from) < life.charge.map(|c| c.attempt));
            life.tasks.iter().any(stale)
        })
    }),
    (RE_EMITTED, |_, state| state.lives.iter().all(Life::has_ended) && state.topics.asked.read == 0),
    (REDELIVERED, |_, state| any(state, |life| life.has_ended() && life.queue == Queue::Waiting)),
    (DROPPED, |_, state| any(state, |life| life.cached_as_ended && life.queue == Queue::Waiting)),
    (RACE_LOST, |_, state| match &state.zombie {
        Some(Zombie::Payments { id, observed, .. } | Zombie::Cancel { id, observed }) => {
            state.lives[*id].row.version > observed.version
        }
        Some(Zombie::Processor { id, observed }) => state.lives[*id].charge_state() != *observed,
        Some(Zombie::Balance { .. }) | None => false,
    }),
    (SET_ASIDE, |_, state| {
        any(state, |life| {
            life.charge.is_some_and(|c| c.forged && c.status == Status::Succeeded) && is_parked(life)
        })
    }),
    (VOIDED, |_, state| any(state, |life| life.row.status == Payment::Failed && life.books.barred)),
    (RESOLVED_COMPLETED, |_, state| any(state, |l| l.resolved && l.row.status == Payment::Completed)),
    (RESOLVED_FAILED, |_, state| any(state, |l| l.resolved && l.row.status == Payment::Failed && l.called)),
    (RESOLVED_UNCALLED, |_, state| {
        any(state, |l| l.resolved && l.row.status == Payment::Failed && !l.called)
    }),
    (RETRIED_AT_PAYMENTS, |_, state| state.mended.payments && ends(state, Payment::Completed, |_| true)),
    (RETRIED_AT_BALANCE, |_, state| state.mended.balance && ends(state, Payment::Completed, |_| true)),
    (RETRIED_AT_PROCESSOR, |_, state| state.mended.processor && ends(state, Payment::Cancelled, |_| true)),
    (DISMISSED, |_, state| state.mended.dismissed && any(state, Life::has_ended)),
    (BOTH_COMPLETED, |_, state| state.lives.iter().all(|life| life.row.status == Payment::Completed)),
    (ONE_REJECTED, |_, state| {
        let is = |status| move |life: &Life| life.row.status == status;
        state.lives.iter().any(is(Payment::Completed)) && state.lives.iter().any(is(Payment::Rejected))
    }),
    (BOTH_REJECTED, |_, state| state.lives.iter().all(|life| life.row.status == Payment::Rejected)),
];

fn each<'a>(coro: &'a Coro, state: &'a State) -> impl Iterator<Item = (&'a Life, i64)> {
    state.lives.iter().zip(coro.bounds.amounts.iter().copied())
}

fn any(state: &State, wanted: impl Fn(&Life) -> bool) -> bool {
    state.lives.iter().any(wanted)
}

/// A payment that ended so, with such a charge (or none, for one that was rejected).
fn ends(state: &State, status: Payment, charge: impl Fn(&Charge) -> bool) -> bool {
    any(state, |life| life.row.status == status && life.charge.as_ref().is_none_or(&charge))
}

fn attempt(from: &processor_svc::saga::State) -> Option<i32> {
    match from {
        processor_svc::saga::State::Waiting { attempt }
        | processor_svc::saga::State::Calling { attempt, .. }
        | processor_svc::saga::State::Unknown { attempt } => Some(*attempt),
        processor_svc::saga::State::Absent
        | processor_svc::saga::State::Succeeded
        | processor_svc::saga::State::Declined
        | processor_svc::saga::State::Expired
        | processor_svc::saga::State::Cancelled => None,
    }
}
