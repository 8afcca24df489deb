//! The payments database, with the guards of `payments-svc/src/store.rs`.

use payments_svc::saga::{Cancel, Event, RowEvent, State as Observed, Status, Step, cancel, decide, next};

use crate::balance_db::terms;
use crate::bounds::Break;
use crate::coro::Coro;
use crate::state::{Id, Queue, State, Wrong};

/// The columns that decide anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub status: Status,
    pub cancel_requested: bool,
    /// `reason is not null`.
    pub has_reason: bool,
    /// The last event; `None`: it was accepted.
    pub event: Option<RowEvent>,
    pub version: u8,
    /// Commits so far; the version must keep up with them.
    pub commits: u8,
}

impl Row {
    pub fn accepted() -> Row {
        let (status, event) = (Status::Initiated, None);
        Row { status, cancel_requested: false, has_reason: false, event, version: 1, commits: 1 }
    }

    /// As the store reads it.
    pub fn state(&self) -> Observed {
        Observed {
            status: self.status,
            cancel_requested: self.cancel_requested,
            outcome_unknown: self.status == Status::Authorized && self.has_reason,
        }
    }
}

struct Transition {
    id: Id,
    version: u8,
    to: Status,
    row_event: RowEvent,
    has_reason: bool,
}

impl Coro {
    /// One transaction of the consumer: decides every event in order on what was `seen` (all rows), writes by
    /// compare-and-set on the version. False if it lost a race, so that nothing was written.
    pub fn apply_to_payments(&self, state: &mut State, batch: &[(Id, Event)], observed: &[Row]) -> bool {
        let mut rows: Vec<(Observed, u8)> = observed.iter().map(|row| (row.state(), row.version)).collect();
        let (mut transitions, mut impossible) = (Vec::new(), false);
        for (id, event) in batch {
            let (row, version) = &mut rows[*id];
            if self.is_broken(Break::EarlyCancelForgotten) {
                row.cancel_requested = false;
            }
            let step = decide(row, event);
            match step {
                Step::Already => {}
                // Nothing of the batch is written: it is read again.
                Step::Missing => return false,
                Step::Illegal(_) => impossible = true,
                Step::Move { to, row_event } => {
                    let has_reason = has_reason(*event);
                    transitions.push(Transition { id: *id, version: *version, to, row_event, has_reason });
                    *version += 1;
                }
            }
            *row = next(row, &step);
        }
        if !self.versions_match(state, &transitions) {
            return false;
        }
        if impossible {
            state.went_wrong(Wrong::Parked);
        }
        for transition in transitions {
            let Transition { id, version, to, row_event, has_reason } = transition;
            let row = &mut state.lives[id].row;
            let before = *row;
            *row = Row { status: to, has_reason, event: Some(row_event), version: version + 1, ..before };
            self.committed(state, id, before);
        }
        true
    }

    /// One statement per round: a payment's second transition finds the version that its first one left.
    fn versions_match(&self, state: &State, transitions: &[Transition]) -> bool {
        let mut versions: Vec<u8> = state.lives.iter().map(|life| life.row.version).collect();
        transitions.iter().all(|transition| {
            let current = &mut versions[transition.id];
            let matches = *current == transition.version || self.is_broken(Break::NoVersionGuard);
            *current = transition.version + 1;
            matches
        })
    }

    /// `POST /payments/{id}/cancel` with what it has `seen`. False if it lost a race and must read again.
    pub fn request_cancel(&self, state: &mut State, id: Id, observed: &Row) -> bool {
        let row_event = match cancel(&observed.state()) {
            Cancel::Record { row_event } => row_event,
            Cancel::Already | Cancel::TooLate(_) => return true,
        };
        let life = &mut state.lives[id];
        if life.row.version != observed.version && !self.is_broken(Break::NoVersionGuard) {
            return false;
        }
        let before = life.row;
        life.cancelled_early |= before.status == Status::Initiated;
        life.row.event = Some(row_event);
        life.row.cancel_requested = true;
        life.row.version = observed.version + 1;
        self.committed(state, id, before);
        true
    }

    /// Checks each commit for a legal transition; the relay then emits it.
    fn committed(&self, state: &mut State, id: Id, before: Row) {
        let row = &mut state.lives[id].row;
        row.commits += 1;
        let after = *row;
        if !is_edge(before, after) || after.version != before.version + 1 {
            state.went_wrong(Wrong::Transition);
        }
        self.emit_payment(state, id);
    }

    /// Routes of `cdc-relay/relay.toml` for the table `payments`, as far as anybody acts on them.
    pub fn emit_payment(&self, state: &mut State, id: Id) {
        let asked = balance_svc::saga::Event::Initiated { terms: terms(self.bounds.amounts[id]) };
        match state.lives[id].row.event {
            None => state.topics.asked.emit(id, asked),
            Some(RowEvent::CancelRecorded) => {
                if !self.is_broken(Break::RecordedCancelIgnored) {
                    state.topics.asked.emit(id, asked);
                }
                if self.is_broken(Break::CancelBeforeHold) || self.is_broken(Break::MissingTakenForDuplicate)
                {
                    state.topics.cancels.emit(id, ());
                }
            }
            Some(RowEvent::Authorized) => state.lives[id].queue = Queue::Waiting,
            Some(RowEvent::CancelRequested) => state.topics.cancels.emit(id, ()),
            Some(
                RowEvent::Completed
                | RowEvent::Rejected
                | RowEvent::Failed
                | RowEvent::Cancelled
                | RowEvent::OutcomeUnknown,
            ) => {}
        }
    }
}

/// Whether the command that carries this event carries a reason (`payments-svc/src/events.rs`).
fn has_reason(event: Event) -> bool {
    match event {
        Event::Held | Event::Captured => false,
        Event::HoldRejected | Event::ReleasedUncharged | Event::ReleasedCancelled | Event::OutcomeUnknown => {
            true
        }
    }
}

/// The steps of a payment, written down a second time: a mistake in `decide` must not be its own measure.
fn is_edge(before: Row, after: Row) -> bool {
    let row_event = after.event;
    match (before.status, after.status) {
        (Status::Initiated, Status::Initiated) => row_event == Some(RowEvent::CancelRecorded),
        (Status::Initiated, Status::Authorized) => {
            row_event == Some(RowEvent::Authorized) || row_event == Some(RowEvent::CancelRequested)
        }
        (Status::Initiated, Status::Rejected) => row_event == Some(RowEvent::Rejected),
        (Status::Authorized, Status::Authorized) => {
            row_event == Some(RowEvent::OutcomeUnknown) || row_event == Some(RowEvent::CancelRequested)
        }
        (Status::Authorized, Status::Completed) => row_event == Some(RowEvent::Completed),
        (Status::Authorized, Status::Failed) => row_event == Some(RowEvent::Failed),
        (Status::Authorized, Status::Cancelled) => row_event == Some(RowEvent::Cancelled),
        (_, _) => false,
    }
}
