//! The balance database, with the guards of `balance-svc/src/store.rs`.

use std::sync::Arc;

use balance_svc::saga::{Entry, Event, ReleaseCause, State as Observed, Step, decide, next};
use payments_svc::saga::Event as PaymentsEvent;
use saga::contract::Terms;

use crate::bounds::Break;
use crate::coro::Coro;
use crate::state::{Account, Id, State, Wrong};

/// The terms of a payment of this amount; there is one service.
pub fn terms(amount: i64) -> Terms {
    Terms { amount, service_id: Arc::default(), client_number: None }
}

/// The ledger's rows of one payment. Numbers, so that a ledger without its primary key differs from one with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entries {
    pub holds: u8,
    pub rejections: u8,
    pub captures: u8,
    pub releases: u8,
    pub cause: Option<ReleaseCause>,
}

impl Entries {
    /// As the store reads it: a second phase replaces the hold it ended.
    fn entry(&self, amount: i64) -> Entry {
        let terms = terms(amount);
        match (self.captures, self.cause, self.holds, self.rejections) {
            (1.., _, _, _) => Entry::Captured { terms },
            (0, Some(cause), _, _) => Entry::Released { terms, cause },
            (0, None, 1.., _) => Entry::Held { terms },
            (0, None, 0, 1..) => Entry::Rejected { terms },
            (0, None, 0, 0) => Entry::None,
        }
    }

    fn has_phase(&self, kind: Kind) -> bool {
        match kind {
            Kind::Hold | Kind::Rejection => self.holds + self.rejections > 0,
            Kind::Capture | Kind::Release(_) => self.captures + self.releases > 0,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Hold,
    Rejection,
    Capture,
    Release(ReleaseCause),
}

/// The result of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Done,
    /// It must wait for the row that it is about.
    Missing,
}

/// Entries of all payments and the account, as they were read.
pub type Read = (Vec<Entries>, Option<Account>);

impl Coro {
    pub fn read_balance(&self, state: &State) -> Read {
        (state.lives.iter().map(|life| life.entries).collect(), state.account)
    }

    /// One transaction: decides every event in order on what was read under the account's lock, inserts the
    /// entries, moves their money.
    pub fn apply_to_balance(&self, state: &mut State, batch: &[(Id, Event)], observed: &Read) -> Applied {
        let amount = |id: Id| self.bounds.amounts[id];
        let mut available = observed.1.map(|account| account.available);
        let mut entries: Vec<Entry> =
            observed.0.iter().enumerate().map(|(id, entries)| entries.entry(amount(id))).collect();
        let (mut inserts, mut impossible) = (Vec::new(), false);
        for (id, event) in batch {
            let before = Observed { entry: self.forget(entries[*id].clone(), event, amount(*id)), available };
            let step = decide(&before, &self.compared(event, amount(*id)));
            match step {
                Step::Hold { .. } => inserts.push((*id, Kind::Hold)),
                Step::Reject { .. } => inserts.push((*id, Kind::Rejection)),
                Step::Capture { .. } => inserts.push((*id, Kind::Capture)),
                Step::Release { cause, .. } => inserts.push((*id, Kind::Release(cause))),
                Step::Already => {}
                Step::Missing if self.is_broken(Break::MissingTakenForDuplicate) => {}
                Step::Missing => return Applied::Missing,
                Step::Differs(_) | Step::Illegal(_) => impossible = true,
            }
            let after = next(&before, &step);
            (entries[*id], available) = (after.entry, after.available);
        }
        if impossible {
            state.went_wrong(Wrong::Parked);
        }
        self.insert(state, &inserts);
        Applied::Done
    }

    /// `on conflict do nothing returning`, and money by what was returned: all or nothing.
    fn insert(&self, state: &mut State, inserts: &[(Id, Kind)]) {
        let mut after = (state.lives.iter().map(|life| life.entries).collect::<Vec<_>>(), state.account);
        let mut returned = Vec::new();
        for (id, kind) in inserts {
            let entries = &mut after.0[*id];
            if entries.has_phase(*kind) && !self.is_broken(Break::MoneyMovesAtEveryEmission) {
                if self.is_broken(Break::DeltasNotFromRows) {
                    self.move_money(&mut after.1, *id, *kind);
                }
                continue;
            }
            match kind {
                Kind::Hold => entries.holds += 1,
                Kind::Rejection => entries.rejections += 1,
                Kind::Capture => entries.captures += 1,
                Kind::Release(cause) => {
                    entries.releases += 1;
                    entries.cause = Some(*cause);
                }
            }
            self.move_money(&mut after.1, *id, *kind);
            returned.push((*id, *kind));
        }
        // The account's check constraints; what they refuse is parked.
        if after.1.is_some_and(|account| account.available < 0 || account.held < 0) {
            return state.went_wrong(Wrong::Parked);
        }
        for (life, entries) in state.lives.iter_mut().zip(after.0) {
            life.entries = entries;
        }
        state.account = after.1;
        for (id, kind) in returned {
            emit_entry(state, id, kind);
        }
    }

    fn move_money(&self, account: &mut Option<Account>, id: Id, kind: Kind) {
        let (Some(account), amount) = (account, self.bounds.amounts[id]) else { return };
        match kind {
            Kind::Hold => {
                account.available -= amount;
                account.held += amount;
            }
            Kind::Rejection => {}
            Kind::Capture => account.held -= amount,
            Kind::Release(_) => {
                account.held -= amount;
                account.available += amount;
            }
        }
    }

    /// Rows of the table `ledger`, re-emitted in their order.
    pub fn emit_ledger(&self, state: &mut State, id: Id) {
        let Entries { holds, rejections, captures, cause, .. } = state.lives[id].entries;
        let first = (holds > 0).then_some(Kind::Hold).or((rejections > 0).then_some(Kind::Rejection));
        let second = (captures > 0).then_some(Kind::Capture).or(cause.map(Kind::Release));
        for kind in first.into_iter().chain(second) {
            emit_entry(state, id, kind);
        }
    }

    /// Broken: whatever was charged, it is taken for what was held.
    fn compared(&self, event: &Event, held: i64) -> Event {
        match event {
            Event::Succeeded { .. } if self.is_broken(Break::CaptureWithoutComparison) => {
                Event::Succeeded { terms: terms(held) }
            }
            Event::Succeeded { .. } | Event::Initiated { .. } | Event::NotCharged { .. } => event.clone(),
        }
    }

    /// Broken: whatever the ledger says, the event finds what it would have found the first time.
    fn forget(&self, entry: Entry, event: &Event, amount: i64) -> Entry {
        match (self.is_broken(Break::MoneyMovesAtEveryEmission), &entry, event) {
            (
                true,
                Entry::Captured { .. } | Entry::Released { .. },
                Event::Succeeded { .. } | Event::NotCharged { .. },
            ) => Entry::Held { terms: terms(amount) },
            (_, _, _) => entry,
        }
    }
}

/// The route of the table `ledger`, and what payments-svc makes of it (`payments-svc/src/events.rs`).
fn emit_entry(state: &mut State, id: Id, kind: Kind) {
    let event = match kind {
        Kind::Hold => PaymentsEvent::Held,
        Kind::Rejection => PaymentsEvent::HoldRejected,
        Kind::Capture => PaymentsEvent::Captured,
        Kind::Release(ReleaseCause::Cancelled) => PaymentsEvent::ReleasedCancelled,
        Kind::Release(ReleaseCause::Declined | ReleaseCause::Expired) => PaymentsEvent::ReleasedUncharged,
    };
    state.topics.money.emit(id, event);
}
