//! The processor database, with the guards of `processor-svc/src/store.rs` and `store/cancel.rs`.

use balance_svc::saga::{Event as Result, ReleaseCause};
use payments_svc::saga::Event as PaymentsEvent;
use processor_svc::cause::Cause;
use processor_svc::saga::{Event, State as Observed, Step, To, decide};

use crate::balance_db::terms;
use crate::bounds::Break;
use crate::coro::Coro;
use crate::state::{Id, State, Wrong};

/// The columns that decide anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Charge {
    pub status: Status,
    pub attempt: i32,
    /// It was unknown once.
    pub exposed: bool,
    /// Its amount is not the payment's.
    pub forged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    Waiting,
    Calling,
    Unknown,
    Succeeded,
    Declined,
    Expired,
    Cancelled,
}

impl Charge {
    /// As the store reads it.
    pub fn state(&self) -> Observed {
        let Charge { status, attempt, exposed, forged: _ } = *self;
        match status {
            Status::Waiting => Observed::Waiting { attempt },
            Status::Calling => Observed::Calling { attempt, exposed },
            Status::Unknown => Observed::Unknown { attempt },
            Status::Succeeded => Observed::Succeeded,
            Status::Declined => Observed::Declined,
            Status::Expired => Observed::Expired,
            Status::Cancelled => Observed::Cancelled,
        }
    }

    /// The named check constraint on what was exposed.
    fn is_allowed(&self) -> bool {
        match self.status {
            Status::Waiting | Status::Expired | Status::Cancelled => !self.exposed,
            Status::Unknown => self.exposed,
            Status::Calling | Status::Succeeded | Status::Declined => true,
        }
    }
}

/// The row that a compare-and-set expects; it never expects one that has ended.
fn expected(from: &Observed) -> Option<(Status, i32)> {
    match *from {
        Observed::Waiting { attempt } => Some((Status::Waiting, attempt)),
        Observed::Calling { attempt, .. } => Some((Status::Calling, attempt)),
        Observed::Unknown { attempt } => Some((Status::Unknown, attempt)),
        Observed::Absent
        | Observed::Succeeded
        | Observed::Declined
        | Observed::Expired
        | Observed::Cancelled => None,
    }
}

fn column(to: &To, before: i32) -> (Status, i32) {
    match to {
        To::Waiting { attempt, .. } => (Status::Waiting, *attempt),
        To::Calling { attempt } => (Status::Calling, *attempt),
        To::Unknown { attempt, .. } => (Status::Unknown, *attempt),
        To::Succeeded { .. } => (Status::Succeeded, before),
        To::Declined { .. } => (Status::Declined, before),
        To::Expired => (Status::Expired, before),
        To::Cancelled => (Status::Cancelled, before),
    }
}

/// The result of a work message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Attempt 1 is ours.
    Calling,
    Expired,
    Already,
}

impl Coro {
    /// A work message becomes a row, unless there is one.
    pub fn admit(&self, state: &mut State, id: Id, forged: bool) -> Admitted {
        let life = &state.lives[id];
        if life.charge.is_some_and(|charge| charge.forged != forged) {
            state.went_wrong(Wrong::Parked);
            return Admitted::Already;
        }
        let event = Event::Work { past_deadline: life.past_deadline };
        match (decide(&life.charge_state(), &event), life.charge) {
            (Step::Insert(to @ (To::Calling { .. } | To::Expired)), None) => {
                let admitted = if to == To::Expired { Admitted::Expired } else { Admitted::Calling };
                self.insert_charge(state, id, &to, forged);
                admitted
            }
            (Step::Already, Some(_)) => Admitted::Already,
            (_, _) => {
                state.went_wrong(Wrong::Impossible);
                Admitted::Already
            }
        }
    }

    fn insert_charge(&self, state: &mut State, id: Id, to: &To, forged: bool) {
        let (status, attempt) = column(to, 1);
        let life = &mut state.lives[id];
        life.charge = Some(Charge { status, attempt, exposed: false, forged });
        life.past_deadline &= status == Status::Waiting;
        self.emit_charge(state, id);
    }

    /// One row of the statement `APPLY`: written if the row is as it was decided from, and a first call is in time.
    pub fn transit(&self, state: &mut State, id: Id, from: &Observed, to: &To) -> bool {
        let life = &mut state.lives[id];
        let (Some(row), Some((status, attempt))) = (life.charge, expected(from)) else { return false };
        let any_attempt = match to {
            To::Unknown { why: Cause::LeaseLapsed, .. } => self.is_broken(Break::LapseWithoutAttemptGuard),
            To::Waiting { .. }
            | To::Calling { .. }
            | To::Unknown { .. }
            | To::Succeeded { .. }
            | To::Declined { .. }
            | To::Expired
            | To::Cancelled => false,
        };
        let in_time = !matches!(to, To::Calling { .. }) || row.exposed || !life.past_deadline;
        if row.status != status || (row.attempt != attempt && !any_attempt) || !in_time {
            return false;
        }
        let (status, attempt) = column(to, attempt);
        let mut after = Charge { status, attempt, exposed: row.exposed || status == Status::Unknown, ..row };
        if self.is_broken(Break::ExposureForgotten) {
            after.exposed = status == Status::Unknown;
        }
        if !after.is_allowed() {
            state.went_wrong(Wrong::Parked);
            return false;
        }
        life.charge = Some(after);
        life.past_deadline &= status == Status::Waiting || self.is_broken(Break::DeadlineEndsCalls);
        self.emit_charge(state, id);
        true
    }

    /// The statements of resolutions, on a row that is locked: the outcome, with the terms of the payment. False if a
    /// constraint refuses it.
    pub fn write_resolution(&self, state: &mut State, id: Id, to: &To) -> bool {
        let life = &mut state.lives[id];
        let before = life.charge.unwrap_or(Charge {
            status: Status::Waiting,
            attempt: 1,
            exposed: false,
            forged: false,
        });
        let (status, attempt) = column(to, before.attempt);
        let after = Charge { status, attempt, forged: false, ..before };
        if !after.is_allowed() {
            return false;
        }
        life.charge = Some(after);
        life.past_deadline = false;
        self.emit_charge(state, id);
        true
    }

    /// A request to cancel, with what was `seen`. False if another one changed the row: it is decided again.
    pub fn cancel_charge(&self, state: &mut State, id: Id, observed: &Observed) -> bool {
        if state.lives[id].charge.is_some_and(|charge| charge.forged) {
            state.went_wrong(Wrong::Parked);
            return true;
        }
        let mut step = decide(observed, &Event::CancelRequested);
        if self.is_broken(Break::CancelEndsCalls)
            && matches!(observed, Observed::Calling { exposed: false, .. })
        {
            step = Step::Move(To::Cancelled);
        }
        match step {
            Step::Insert(to @ To::Cancelled) => {
                let is_absent = state.lives[id].charge.is_none();
                if is_absent {
                    self.insert_charge(state, id, &to, false);
                }
                is_absent
            }
            Step::Move(to @ To::Cancelled) => self.transit(state, id, observed, &to),
            Step::Already | Step::TooLate => true,
            Step::Insert(_)
            | Step::Move(_)
            | Step::Inquire
            | Step::InquireLater
            | Step::Stale
            | Step::Contradiction
            | Step::Illegal => {
                state.went_wrong(Wrong::Impossible);
                true
            }
        }
    }

    /// The route of the table `charges`, and what the two readers make of it.
    pub fn emit_charge(&self, state: &mut State, id: Id) {
        let Some(charge) = state.lives[id].charge else { return };
        let terms = terms(self.bounds.amounts[id] - i64::from(charge.forged));
        let not_charged = |cause| Result::NotCharged { terms: terms.clone(), cause };
        let results = &mut state.topics.results;
        match charge.status {
            Status::Waiting | Status::Calling => {}
            Status::Unknown => state.topics.unknowns.emit(id, PaymentsEvent::OutcomeUnknown),
            Status::Succeeded => results.emit(id, Result::Succeeded { terms }),
            Status::Declined => results.emit(id, not_charged(ReleaseCause::Declined)),
            Status::Expired => results.emit(id, not_charged(ReleaseCause::Expired)),
            Status::Cancelled => results.emit(id, not_charged(ReleaseCause::Cancelled)),
        }
    }
}
