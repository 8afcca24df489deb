//! Events that a service sets aside though they can be applied, as an instance does that cannot read them yet, and the acts by which
//! operators deal with them. The decision is the real one.

use balance_svc::saga as balance;
use payments_svc::saga as payments;
use saga::parked::acts::{Act, Reapplied, Verdict, decide};

use crate::balance_db::Applied;
use crate::bounds::Break;
use crate::coro::{Action, Coro};
use crate::readers::{TOPICS, Topic};
use crate::state::{Id, State};

/// An event in `parked` that was not retried.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parked {
    message: Message,
    /// It may still be retried.
    is_dismissed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Message {
    Payments(Id, payments::Event),
    Balance(Id, balance::Event),
    /// A cancel.
    Processor(Id),
}

/// The kinds of acts so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mended {
    /// A retry changed rows of this service.
    pub payments: bool,
    pub balance: bool,
    pub processor: bool,
    /// A message whose effect was there already was dismissed.
    pub dismissed: bool,
}

impl Coro {
    /// What may be set aside next, and what operators may do about it.
    pub fn setting_aside(&self, state: &State, actions: &mut Vec<Action>) {
        if state.set_aside < self.bounds.others.set_aside {
            let unread = TOPICS.into_iter().filter(|topic| topic.unread(&state.topics) > 0);
            actions.extend(unread.map(Action::SetAside));
        }
        for (nth, parked) in state.parked.iter().enumerate() {
            actions.push(Action::Mend(nth, Act::Retried));
            if !parked.is_dismissed {
                actions.push(Action::Mend(nth, Act::Dismissed));
            }
        }
    }

    /// The message is in `parked`, and its offset is stored.
    pub fn set_aside(&self, state: &mut State, topic: Topic) {
        let topics = &state.topics;
        let payments = |(id, event): (Id, payments::Event)| Message::Payments(id, event);
        let balance = |(id, event): (Id, balance::Event)| Message::Balance(id, event);
        let next = match topic {
            Topic::Money => topics.money.next(1).pop().map(payments),
            Topic::Unknowns => topics.unknowns.next(1).pop().map(payments),
            Topic::Asked => topics.asked.next(1).pop().map(balance),
            Topic::Results => topics.results.next(1).pop().map(balance),
            Topic::Cancels => topics.cancels.next(1).pop().map(|(id, ())| Message::Processor(id)),
        };
        state.parked.extend(next.map(|message| Parked { message, is_dismissed: false }));
        state.set_aside += 1;
        *topic.position(&mut state.topics) += 1;
    }

    /// An operator's act, in one transaction; false if it is refused.
    pub fn mend(&self, state: &mut State, nth: usize, act: Act) -> bool {
        let (reapplied, after) = self.reapplied(state, nth);
        match decide(act, &reapplied) {
            Verdict::Apply(_) => {
                if !self.is_broken(Break::RetryRecordedAlone) {
                    *state = after;
                }
                let parked = state.parked.remove(nth);
                state.mended.note(&parked, &reapplied);
            }
            Verdict::Refuse(_) if act == Act::Dismissed && self.is_broken(Break::DismissedUntried) => {
                state.parked.remove(nth);
            }
            Verdict::Record(_) => {
                state.parked[nth].is_dismissed = true;
                state.mended.dismissed |= reapplied == Reapplied::Already;
            }
            Verdict::Refuse(_) => return false,
        }
        true
    }

    /// Operators retry what is parked, and dismiss what cannot be applied; false once nothing is left to do.
    pub fn mend_on(&self, state: &mut State) -> bool {
        (0..state.parked.len()).any(|nth| {
            let is_dismissed = state.parked[nth].is_dismissed;
            self.mend(state, nth, Act::Retried) || (!is_dismissed && self.mend(state, nth, Act::Dismissed))
        })
    }

    /// Applies a parked message as its consumer would, and says what came of it.
    fn reapplied(&self, state: &State, nth: usize) -> (Reapplied, State) {
        let mut after = state.clone();
        let is_applied = match &state.parked[nth].message {
            Message::Payments(id, event) => {
                let rows: Vec<_> = state.lives.iter().map(|life| life.row).collect();
                self.apply_to_payments(&mut after, &[(*id, *event)], &rows)
            }
            Message::Balance(id, event) => {
                let read = self.read_balance(state);
                let applied = self.apply_to_balance(&mut after, &[(*id, event.clone())], &read);
                matches!(applied, Applied::Done)
            }
            Message::Processor(id) => self.cancel_charge(&mut after, *id, &state.lives[*id].charge_state()),
        };
        let reapplied = if !is_applied || after.wrong != state.wrong {
            Reapplied::Impossible(String::new())
        } else if after == *state {
            Reapplied::Already
        } else {
            Reapplied::Applied
        };
        (reapplied, after)
    }
}

impl Mended {
    fn note(&mut self, Parked { message, .. }: &Parked, reapplied: &Reapplied) {
        if *reapplied != Reapplied::Applied {
            return;
        }
        match message {
            Message::Payments(..) => self.payments = true,
            Message::Balance(..) => self.balance = true,
            Message::Processor(_) => self.processor = true,
        }
    }
}
