//! Two operators: one proposes what the gateway says of a charge, another confirms it later. The decision is the real one.
//!
//! What they say is true when it is proposed. Who says that nothing is charged, and will be, has had the reference barred if a
//! request may have left; who says that all was given back has had it given back. The gateway keeps to that for ever. What is said of a
//! charge that was never called may be wrong by the time of the confirmation: the processor has to notice.

use processor_svc::charge::Charge as Columns;
use processor_svc::saga::resolution::{Evidence, Found, Resolution, resolve};
use uuid::Uuid;

use crate::bounds::Break;
use crate::coro::{Action, Coro};
use crate::gateway::Verdict;
use crate::processor_db::{Charge, Status};
use crate::state::{Id, Life, State, Wrong};

/// An [`Evidence`] without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    Succeeded,
    Declined,
    NeverMade,
}

/// A proposal that waits for its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    pub said: Said,
    /// The charge that it was about. Its version grows with each change, so equal columns are the same version.
    pub charge: Option<Charge>,
}

impl Coro {
    /// What operators may do about this payment now. They look at payments whose money is held.
    pub fn mending(&self, life: &Life, id: Id, actions: &mut Vec<Action>) {
        if !self.bounds.others.operators {
            return;
        }
        if life.proposal.is_some() {
            actions.push(Action::Confirm(id));
        } else if life.entries.holds == 1 && life.entries.captures + life.entries.releases == 0 {
            let proposed = [Said::Succeeded, Said::Declined, Said::NeverMade];
            let true_now = proposed.into_iter().filter(|said| is_true(life, *said));
            actions.extend(true_now.map(|said| Action::Propose(id, said)));
        }
    }

    pub fn propose(&self, state: &mut State, id: Id, said: Said) {
        let life = &mut state.lives[id];
        match said {
            Said::Succeeded => {}
            // What an operator would not believe by itself is put right at the gateway first.
            Said::Declined => {
                life.books.standing = 0;
                life.books.barred = true;
            }
            // An owner may send long after its lease, so whoever has a lease counts as having called.
            Said::NeverMade => life.books.barred |= may_be_called(life),
        }
        let life = &mut state.lives[id];
        life.proposal = Some(Proposal { said, charge: life.charge });
    }

    /// One transaction under the lock of the charge, as in `processor-svc/src/store/resolutions.rs`.
    pub fn confirm(&self, state: &mut State, id: Id) {
        let life = &mut state.lives[id];
        let Some(Proposal { said, charge }) = life.proposal.take() else { return };
        let has_changed = life.charge != charge && !self.is_broken(Break::StaleConfirmation);
        let amount = self.bounds.amounts[id];
        let terms = columns(amount);
        let evidence = match said {
            Said::Succeeded => {
                let charged = amount - i64::from(life.charge.is_some_and(|charge| charge.forged));
                Evidence::Succeeded { provider_reference: String::new(), amount: charged }
            }
            Said::Declined => Evidence::Declined { code: "voided".to_owned() },
            Said::NeverMade => Evidence::NeverMade,
        };
        let found = life.charge.map(|charge| Found {
            state: charge.state(),
            charge: columns(amount - i64::from(charge.forged)),
            provider_reference: Some(String::new()),
            version: 1,
            // Time is not modelled: it may be over at any moment.
            is_lease_over: true,
        });
        match resolve(found.as_ref(), &terms, &evidence, has_changed) {
            Resolution::Insert(to) | Resolution::Move(to) => {
                let is_free = self.write_resolution(state, id, &to);
                state.lives[id].resolved |= is_free;
                if !is_free {
                    state.went_wrong(Wrong::Parked);
                }
            }
            Resolution::Already | Resolution::Refused(_) => {}
        }
    }
}

/// Whether the gateway says so, or will as soon as it is asked to.
fn is_true(life: &Life, said: Said) -> bool {
    let undecided = life.books.keys.iter().all(|verdict| *verdict == Verdict::None);
    match said {
        Said::Succeeded => life.books.standing == 1 && !life.books.is_pending(),
        // Only what charged another amount is given back by hand; the processor gives back the rest.
        Said::Declined => {
            // They look once nothing is under way any more: an answer from before would contradict what they then do.
            let is_at_rest = life.tasks.is_empty() && life.strays == 0;
            let is_forged = life.charge.is_some_and(|charge| charge.forged && charge.state().has_ended());
            (is_forged && is_at_rest) || life.books.has_refused()
        }
        Said::NeverMade => undecided,
    }
}

fn may_be_called(life: &Life) -> bool {
    let had_a_lease = life.charge.is_some_and(|charge| match charge.status {
        Status::Waiting | Status::Expired | Status::Cancelled => false,
        Status::Calling | Status::Unknown | Status::Succeeded | Status::Declined => true,
    });
    life.called || had_a_lease
}

fn columns(amount: i64) -> Columns {
    Columns {
        payment_id: Uuid::nil(),
        user_id: Uuid::nil(),
        client_number: String::new(),
        service_id: String::new(),
        amount,
        traceparent: None,
    }
}
