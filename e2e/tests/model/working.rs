//! The next actions of users, processors and the gateway.

use payments_svc::saga::{Cancel, cancel};
use processor_svc::saga::{Event, State as Observed, Step};

use crate::bounds::{Break, Keys};
use crate::coro::{Action, Coro};
use crate::foreign::Foreign;
use crate::gateway::{Verdict, is_quiet};
use crate::processor_db::{Admitted, Status};
use crate::state::{CallAt, Due, Id, InquiryAt, Life, Queue, State, Task};
use crate::tasks::TaskStep;

impl Coro {
    pub fn asking(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.bounds.cancels {
            return;
        }
        for (id, life) in state.lives.iter().enumerate() {
            if matches!(cancel(&life.row.state()), Cancel::Record { .. }) {
                actions.push(Action::Cancel(id));
                if self.bounds.races && state.zombie.is_none() {
                    actions.push(Action::CancelReads(id));
                }
            }
        }
    }

    pub fn working(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let life = &state.lives[id];
        self.messages(life, id, actions);
        // Beside a true one: what nobody asked to charge has no hold that could be compared, or has ended.
        if self.bounds.others.forger && life.charge.is_none() && life.queue != Queue::NotEmitted {
            actions.push(Action::ForgedWork(id));
        }
        for task in &life.tasks {
            self.steps(life, task, &mut |step| actions.push(Action::Task(id, *task, step)));
        }
        let status = life.charge.map(|charge| charge.status);
        // It binds the first call only, so that nothing else looks at the clock.
        let is_bound =
            matches!(status, None | Some(Status::Waiting)) || self.is_broken(Break::DeadlineEndsCalls);
        if is_bound && !life.past_deadline && !life.has_ended() {
            actions.push(Action::DeadlinePasses(id));
        }
        self.due(life, id, actions);
    }

    fn messages(&self, life: &Life, id: Id, actions: &mut Vec<Action>) {
        match life.queue {
            Queue::NotEmitted => {}
            Queue::Waiting => {
                actions.push(Action::Work(id));
                let loses =
                    self.is_broken(Break::AckBeforeCommit) || self.is_broken(Break::RedisBeforeCommit);
                if loses && life.charge.is_none() {
                    actions.push(Action::WorkIsLost(id));
                }
                if self.is_broken(Break::CallBeforeIntent) && life.charge.is_none() && life.tasks.is_empty() {
                    actions.push(Action::CallEarly(id));
                }
            }
            Queue::Acknowledged if self.bounds.re_emitted => actions.push(Action::Redeliver(id)),
            Queue::Acknowledged => {}
        }
        if self.bounds.re_emitted && life.charge_state().has_ended() {
            actions.push(if life.cached_as_ended { Action::EvictEnded(id) } else { Action::CacheEnded(id) });
        }
    }

    /// Leases, pauses and inquiries that are due. Time is what the checker likes it to be.
    fn due(&self, life: &Life, id: Id, actions: &mut Vec<Action>) {
        let Some(charge) = life.charge else { return };
        let count = |wanted: fn(&Task) -> bool| life.tasks.iter().filter(|task| wanted(task)).count();
        match charge.status {
            Status::Waiting | Status::Calling => {
                let owned = life.tasks.iter().any(|task| is_owner(task, charge.attempt));
                // A call that must not be lost is not made too late either.
                let unsent =
                    Task::Call { attempt: charge.attempt, exposed: charge.exposed, at: CallAt::Taken };
                let last = charge.attempt == self.bounds.attempts;
                let held = self.bounds.timely && last && life.tasks.contains(&unsent);
                if count(|task| matches!(task, Task::Sweep { .. })) < self.bounds.sweeps && !held {
                    actions.push(Action::Sweep { id, early: owned });
                }
            }
            Status::Unknown => {
                if count(|task| matches!(task, Task::Inquiry { .. })) < self.bounds.inquiries {
                    actions.push(Action::Inquire { id, delay_over: false });
                    if self.may_be_over(life) {
                        actions.push(Action::Inquire { id, delay_over: true });
                    }
                }
            }
            Status::Succeeded | Status::Declined | Status::Expired | Status::Cancelled => {}
        }
    }

    pub fn may_be_over(&self, life: &Life) -> bool {
        let in_bounds = self.bounds.keys == Keys::Ignored
            || life.charge.is_some_and(|c| c.attempt < self.bounds.attempts);
        let promised = !self.bounds.timely || is_quiet(life) || self.is_broken(Break::ResendBeforeVisibility);
        in_bounds && promised
    }

    fn steps(&self, life: &Life, task: &Task, push: &mut impl FnMut(TaskStep)) {
        match task {
            Task::Call { attempt, at: CallAt::Taken, .. } => {
                let owns =
                    matches!(life.charge_state(), Observed::Calling { attempt: now, .. } if now == *attempt);
                let in_time = !self.bounds.timely || owns;
                if in_time {
                    push(TaskStep::Sends);
                }
                if *attempt < self.bounds.attempts || !in_time {
                    push(TaskStep::DoesNotSend);
                    push(TaskStep::Dies);
                }
            }
            Task::Call { attempt, at: CallAt::Sent, .. } => {
                for verdict in life.books.verdicts(self.key(*attempt), &self.bounds) {
                    push(TaskStep::IsAnswered(*verdict));
                }
                push(TaskStep::TimesOut);
                self.answers_of_others(push);
                push(TaskStep::Dies);
            }
            Task::Call { attempt, at: CallAt::Ended { from, .. }, .. } => {
                push(TaskStep::Writes);
                let is_first = matches!(from, Observed::Calling { attempt: first, .. } if first == attempt);
                if is_first && self.bounds.races {
                    push(TaskStep::WritesWithoutAnswer);
                }
                push(TaskStep::Dies);
            }
            Task::Sweep { .. } => {
                push(TaskStep::Writes);
                push(TaskStep::Dies);
            }
            Task::Inquiry { at: InquiryAt::Asking, .. } => {
                push(TaskStep::Asks);
                push(TaskStep::Fails);
                self.answers_of_others(push);
                push(TaskStep::Dies);
            }
            Task::Inquiry { at: InquiryAt::Repairing(_), .. } => {
                push(TaskStep::Repairs);
                push(TaskStep::Fails);
                self.answers_of_others(push);
                push(TaskStep::Dies);
            }
            Task::Inquiry { at: InquiryAt::Found { .. }, .. } => {
                push(TaskStep::Writes);
                push(TaskStep::Dies);
            }
        }
    }

    fn answers_of_others(&self, push: &mut impl FnMut(TaskStep)) {
        if self.bounds.foreign {
            Foreign::ALL.iter().for_each(|foreign| push(TaskStep::IsAnsweredByAnother(*foreign)));
        }
    }

    pub fn at_the_gateway(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let life = &state.lives[id];
        for key in (0..life.books.keys.len()).filter(|key| life.strays & (1 << key) != 0) {
            let verdicts = life.books.verdicts(key, &self.bounds).iter();
            actions.extend(verdicts.map(|verdict| Action::StrayArrives(id, key, *verdict)));
            if life.charge.is_none_or(|charge| charge.attempt < self.bounds.attempts) {
                actions.push(Action::StrayIsLost(id, key));
            }
        }
        for key in 0..life.books.keys.len() {
            if life.books.keys[key] == Verdict::Pending {
                let verdicts = [Verdict::Approved, Verdict::Declined];
                actions.extend(verdicts.map(|verdict| Action::Decides(id, key, verdict)));
            }
        }
        if life.books.has_decided() && !life.books.visible {
            actions.push(Action::BecomesVisible(id));
        }
    }

    pub fn take_work(&self, state: &mut State, id: Id) {
        state.lives[id].queue = Queue::Acknowledged;
        // The duplicate of a charge that has ended: Redis says so, and the row.
        let confirmed =
            state.lives[id].charge_state().has_ended() || self.is_broken(Break::RedisBeforeCommit);
        if state.lives[id].cached_as_ended && confirmed {
            return;
        }
        if self.admit(state, id, false) == Admitted::Calling {
            own_first_attempt(state, id);
        }
    }

    /// A work message with another amount than the payment's; the real one may come later or have come.
    pub fn take_forged_work(&self, state: &mut State, id: Id) {
        if self.admit(state, id, true) == Admitted::Calling {
            own_first_attempt(state, id);
        }
    }

    pub fn lose_work(&self, state: &mut State, id: Id) {
        if self.is_broken(Break::RedisBeforeCommit) {
            state.lives[id].cached_as_ended = true;
        } else {
            state.lives[id].queue = Queue::Acknowledged;
        }
    }

    pub fn call_early(&self, state: &mut State, id: Id) {
        own_first_attempt(state, id);
    }

    /// The report of a sweeper about a row that is due; it is decided once more when it is written.
    pub fn sweep(&self, state: &mut State, id: Id) {
        let life = &mut state.lives[id];
        let from = life.charge_state();
        let never_called =
            matches!(from, Observed::Waiting { .. }) || self.is_broken(Break::DeadlineEndsCalls);
        let due = if life.past_deadline && never_called { Due::Deadline } else { Due::Lease };
        let event = match due {
            Due::Lease => Event::LeaseLapsed,
            Due::Deadline => Event::DeadlinePassed,
        };
        if matches!(self.decide_charge(&from, &event), Step::Move(_)) {
            life.tasks.push(Task::Sweep { from, due });
            life.tasks.sort_unstable();
        }
    }

    pub fn claim(&self, state: &mut State, id: Id, delay_over: bool) {
        let life = &mut state.lives[id];
        let Some(charge) = life.charge else { return };
        life.tasks.push(Task::Inquiry { attempt: charge.attempt, delay_over, at: InquiryAt::Asking });
        life.tasks.sort_unstable();
    }
}

fn own_first_attempt(state: &mut State, id: Id) {
    let life = &mut state.lives[id];
    life.tasks.push(Task::Call { attempt: 1, exposed: false, at: CallAt::Taken });
    life.tasks.sort_unstable();
}

pub fn is_owner(task: &Task, attempt: i32) -> bool {
    matches!(task, Task::Call { attempt: owned, .. } if *owned == attempt)
}
