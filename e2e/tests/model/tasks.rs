//! The processors at work, in their memory: `calls.rs`, `outcomes.rs` and `sweep.rs`, a step at a time, so
//! that a process can die between any two.

use processor_svc::cause::Cause;
use processor_svc::saga::{Event, Finding, Outcome, State as Observed, Step, To, decide};

use crate::bounds::{Break, Keys};
use crate::coro::Coro;
use crate::foreign::Foreign;
use crate::gateway::Verdict;
use crate::state::{CallAt, Due, Found, Id, InquiryAt, Said, State, Task, Wrong};

/// As in `outcomes.rs`.
const ROUNDS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStep {
    /// The request leaves.
    Sends,
    /// The breaker is open, or nobody listens, or too little is left of the lease.
    DoesNotSend,
    /// The request arrives, is decided and answered.
    IsAnswered(Verdict),
    /// The caller gives up; the request may still arrive.
    TimesOut,
    /// An answer comes that does not name our charge; the request may still arrive. Of an inquiry or a repair: only
    /// the answer comes.
    IsAnsweredByAnother(Foreign),
    /// The result is decided and written by compare-and-set; if the row has changed, that is read for the
    /// next try.
    Writes,
    /// The same, but the process gets no answer to its commit, and tries again.
    WritesWithoutAnswer,
    /// The inquiry is answered.
    Asks,
    /// The inquiry fails.
    Fails,
    /// The gateway confirms what was to be put right.
    Repairs,
    Dies,
}

impl Coro {
    /// Takes the step; false if it changes nothing.
    pub fn step(&self, state: &mut State, id: Id, task: Task, step: TaskStep) -> bool {
        let before = state.lives[id].tasks.iter().position(|other| *other == task);
        let Some(place) = before else { return false };
        state.lives[id].tasks.remove(place);
        let after = match (task, step) {
            (Task::Call { at: CallAt::Sent, attempt, .. }, TaskStep::Dies) => {
                state.lives[id].strays |= 1 << self.key(attempt);
                None
            }
            (_, TaskStep::Dies) => None,
            (Task::Call { attempt, exposed, at: CallAt::Ended { said, from } }, _) => {
                let again = self.write_call(state, id, attempt, said, from);
                let again = if step == TaskStep::WritesWithoutAnswer { again.or(Some(from)) } else { again };
                again.map(|from| Task::Call { attempt, exposed, at: CallAt::Ended { said, from } })
            }
            (Task::Call { attempt, exposed, at: CallAt::Taken | CallAt::Sent }, _) => {
                let at = self.call(state, id, attempt, exposed, step);
                Some(Task::Call { attempt, exposed, at })
            }
            (Task::Sweep { from, due }, _) => {
                self.write_sweep(state, id, from, due);
                None
            }
            (Task::Inquiry { attempt, delay_over, at: InquiryAt::Found { found, from } }, _) => {
                let from = self.write_inquiry(state, id, Finds { attempt, delay_over, found }, from);
                from.map(|from| Task::Inquiry { attempt, delay_over, at: InquiryAt::Found { found, from } })
            }
            (Task::Inquiry { attempt, delay_over, at }, _) => {
                let at = self.inquiry(state, id, Asks { attempt, delay_over, at }, step);
                Some(Task::Inquiry { attempt, delay_over, at })
            }
        };
        let tasks = &mut state.lives[id].tasks;
        tasks.extend(after);
        tasks.sort_unstable();
        true
    }

    fn call(&self, state: &mut State, id: Id, attempt: i32, exposed: bool, step: TaskStep) -> CallAt {
        let life = &mut state.lives[id];
        let key = self.key(attempt);
        let said = match step {
            TaskStep::Sends => {
                life.called = true;
                return CallAt::Sent;
            }
            TaskStep::IsAnswered(verdict) => life.books.arrives(key, verdict, &self.bounds),
            TaskStep::TimesOut => {
                life.strays |= 1 << key;
                Said::Unknown
            }
            TaskStep::IsAnsweredByAnother(foreign) => {
                life.strays |= 1 << key;
                self.said_by(foreign)
            }
            TaskStep::DoesNotSend
            | TaskStep::Writes
            | TaskStep::WritesWithoutAnswer
            | TaskStep::Asks
            | TaskStep::Fails
            | TaskStep::Repairs
            | TaskStep::Dies => Said::NotSent,
        };
        CallAt::Ended { said, from: Observed::Calling { attempt, exposed } }
    }

    fn inquiry(&self, state: &mut State, id: Id, asks: Asks, step: TaskStep) -> InquiryAt {
        let Asks { attempt, delay_over, at } = asks;
        let books = &mut state.lives[id].books;
        let idempotent = self.bounds.keys != Keys::Ignored;
        let found = match (at, step) {
            (_, TaskStep::Fails) => Found::Unavailable,
            (InquiryAt::Repairing(lookup), TaskStep::IsAnsweredByAnother(foreign)) => {
                let repair = lookup.real().repair(delay_over, idempotent);
                match repair.is_none_or(|repair| foreign.confirms(&repair)) {
                    true => found(&lookup.real().finding(delay_over, idempotent)),
                    false => Found::Unavailable,
                }
            }
            (_, TaskStep::IsAnsweredByAnother(foreign)) => {
                let lookup = foreign.found();
                match lookup.repair(delay_over, idempotent) {
                    // The repair of what was never found goes to the gateway, and is confirmed by it or not at all.
                    Some(_) => Found::Unavailable,
                    None => found(&lookup.finding(delay_over, idempotent)),
                }
            }
            (InquiryAt::Repairing(lookup), _) => {
                if let Some(repair) = lookup.real().repair(delay_over, idempotent) {
                    books.repair(&repair);
                }
                found(&lookup.real().finding(delay_over, idempotent))
            }
            (InquiryAt::Asking | InquiryAt::Found { .. }, _) => {
                let lookup = books.find();
                if lookup.real().repair(delay_over, idempotent).is_some() {
                    return InquiryAt::Repairing(lookup);
                }
                found(&lookup.real().finding(delay_over, idempotent))
            }
        };
        InquiryAt::Found { found, from: Observed::Unknown { attempt } }
    }

    /// `None` when the report needs nothing more, otherwise the state to decide it on again.
    fn write_call(
        &self,
        state: &mut State,
        id: Id,
        attempt: i32,
        said: Said,
        from: Observed,
    ) -> Option<Observed> {
        let (mut attempt, mut from) = (attempt, from);
        if self.is_broken(Break::OutcomeWithoutAttemptGuard) {
            from = state.lives[id].charge_state();
            attempt = state.lives[id].charge.map_or(attempt, |charge| charge.attempt);
        }
        let outcome = match said {
            Said::Succeeded => Outcome::Succeeded { provider_reference: String::new() },
            Said::Unknown if self.is_broken(Break::ReleaseOnTimeout) => {
                Outcome::Declined { code: String::new() }
            }
            Said::Declined => Outcome::Declined { code: String::new() },
            Said::NotSent => Outcome::NotSent { why: Cause::NotConnected },
            Said::Unknown => Outcome::Unknown { why: Cause::TimedOut },
        };
        self.rounds(state, id, from, &Event::Called { attempt, outcome })
    }

    fn write_inquiry(&self, state: &mut State, id: Id, finds: Finds, from: Observed) -> Option<Observed> {
        let Finds { attempt, delay_over, found } = finds;
        let finding = match found {
            Found::Succeeded => Finding::Succeeded { provider_reference: String::new() },
            Found::Nothing if delay_over && self.is_broken(Break::NotFoundIsDecline) => {
                Finding::Declined { code: String::new() }
            }
            Found::Declined => Finding::Declined { code: String::new() },
            Found::Nothing => Finding::NotFound { conclusive: delay_over },
            Found::Unavailable => Finding::Unavailable { why: Cause::TimedOut },
        };
        self.rounds(state, id, from, &Event::Inquired { attempt, finding })
    }

    /// An observation of an old state says nothing about a new one: it is not decided again.
    fn write_sweep(&self, state: &mut State, id: Id, from: Observed, due: Due) {
        let event = match due {
            Due::Lease => Event::LeaseLapsed,
            Due::Deadline => Event::DeadlinePassed,
        };
        let _ = self.write(state, id, from, &event);
    }

    /// A write that did not apply is read and decided again: at once, or, where races are explored, in a step of its own.
    fn rounds(&self, state: &mut State, id: Id, from: Observed, event: &Event) -> Option<Observed> {
        let mut again = self.write(state, id, from, event);
        for _ in 0..ROUNDS_MAX {
            again = match again {
                Some(from) if !self.bounds.races => self.write(state, id, from, event),
                Some(_) | None => return again,
            };
        }
        again
    }

    /// One round of `outcomes.rs`: decide, compare-and-set, and what follows the commit.
    fn write(&self, state: &mut State, id: Id, from: Observed, event: &Event) -> Option<Observed> {
        match self.decide_charge(&from, event) {
            Step::Move(to) => {
                if !self.transit(state, id, &from, &to) {
                    return Some(state.lives[id].charge_state());
                }
                if let To::Calling { attempt } = to {
                    let exposed =
                        matches!(from, Observed::Unknown { .. }) && !self.is_broken(Break::ExposureForgotten);
                    state.lives[id].tasks.push(Task::Call { attempt, exposed, at: CallAt::Taken });
                }
            }
            Step::Inquire | Step::InquireLater | Step::Already | Step::TooLate | Step::Stale => {}
            Step::Insert(_) | Step::Contradiction | Step::Illegal => state.went_wrong(Wrong::Impossible),
        }
        None
    }

    pub fn decide_charge(&self, from: &Observed, event: &Event) -> Step {
        if self.is_broken(Break::DeadlineEndsCalls)
            && matches!((from, event), (Observed::Calling { exposed: false, .. }, Event::DeadlinePassed))
        {
            return Step::Move(To::Expired);
        }
        decide(from, event)
    }

    /// The key a call is made under.
    pub fn key(&self, attempt: i32) -> usize {
        usize::from(self.is_broken(Break::SecondGatewayKey) && attempt > 1)
    }
}

#[derive(Clone, Copy)]
struct Asks {
    attempt: i32,
    delay_over: bool,
    at: InquiryAt,
}

#[derive(Clone, Copy)]
struct Finds {
    attempt: i32,
    delay_over: bool,
    found: Found,
}

fn found(finding: &Finding) -> Found {
    match finding {
        Finding::Succeeded { .. } => Found::Succeeded,
        Finding::Declined { .. } => Found::Declined,
        Finding::NotFound { .. } => Found::Nothing,
        Finding::Unavailable { .. } => Found::Unavailable,
    }
}
