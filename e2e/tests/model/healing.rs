//! S1: from every state the system becomes quiescent once nothing fails any more.
//!
//! stateright's `eventually` loses sight of cycles, and a system that inquires for as long as it takes has them. So
//! every state there is is taken as the beginning of a run without faults, and the end of that run is looked at.
//! A state where nothing can happen is its own end; one that can only turn in circles has none.

use crate::coro::Coro;
use crate::gateway::Verdict;
use crate::processor_db::Status;
use crate::readers::{Batch, READERS};
use crate::state::{CallAt, Id, InquiryAt, Queue, State, Task};
use crate::tasks::TaskStep;

/// More than any run needs.
const STEPS_MAX: usize = 200;

impl Coro {
    /// The end of a run without faults; `None` if it has none.
    pub fn healed(&self, state: &State) -> Option<State> {
        let mut state = state.clone();
        let goes_on = |state: &mut State| {
            self.relay_on(state)
                || (0..state.lives.len()).any(|id| self.work_on(state, id))
                || self.mend_on(state)
        };
        (0..STEPS_MAX).any(|_| !goes_on(&mut state)).then_some(state)
    }

    fn relay_on(&self, state: &mut State) -> bool {
        if state.zombie.is_some() {
            self.zombie_writes(state);
            return true;
        }
        for reader in READERS {
            for topic in reader.topics() {
                if topic.unread(&state.topics) > 0 && self.apply(state, reader, Batch::Next(*topic)) {
                    return true;
                }
            }
        }
        false
    }

    fn work_on(&self, state: &mut State, id: Id) -> bool {
        let life = &state.lives[id];
        if life.queue == Queue::Waiting {
            self.take_work(state, id);
        } else if let Some(task) = life.tasks.first().copied() {
            let step = self.goes_well(state, id, &task);
            self.step(state, id, task, step);
        } else if life.strays != 0 || life.books.is_pending() {
            let life = &mut state.lives[id];
            for key in 0..life.books.keys.len() {
                if life.strays & (1 << key) != 0 {
                    let verdict = life.books.verdicts(key, &self.bounds)[0];
                    let _ = life.books.arrives(key, verdict, &self.bounds);
                } else if life.books.keys[key] == Verdict::Pending {
                    life.books.decides(key, Verdict::Approved, &self.bounds);
                }
            }
            life.strays = 0;
        } else if life.books.has_decided() && !life.books.visible {
            state.lives[id].books.visible = true;
        } else {
            return self.look_after(state, id);
        }
        true
    }

    fn goes_well(&self, state: &State, id: Id, task: &Task) -> TaskStep {
        match task {
            Task::Call { attempt, at: CallAt::Taken, .. } => {
                let charge = state.lives[id].charge;
                let owns = charge.is_some_and(|c| c.status == Status::Calling && c.attempt == *attempt);
                if owns || !self.bounds.timely { TaskStep::Sends } else { TaskStep::DoesNotSend }
            }
            Task::Call { attempt, at: CallAt::Sent, .. } => {
                let verdicts = state.lives[id].books.verdicts(self.key(*attempt), &self.bounds);
                TaskStep::IsAnswered(verdicts[0])
            }
            Task::Call { at: CallAt::Ended { .. }, .. }
            | Task::Sweep { .. }
            | Task::Inquiry { at: InquiryAt::Found { .. }, .. } => TaskStep::Writes,
            Task::Inquiry { at: InquiryAt::Asking, .. } => TaskStep::Asks,
            Task::Inquiry { at: InquiryAt::Repairing(_), .. } => TaskStep::Repairs,
        }
    }

    /// The sweeper, when nothing else goes on.
    fn look_after(&self, state: &mut State, id: Id) -> bool {
        let life = &state.lives[id];
        match life.charge.map(|charge| charge.status) {
            Some(Status::Waiting | Status::Calling) => self.sweep(state, id),
            Some(Status::Unknown) => {
                let delay_over = self.may_be_over(life);
                self.claim(state, id, delay_over);
            }
            None | Some(Status::Succeeded | Status::Declined | Status::Expired | Status::Cancelled) => {
                return false;
            }
        }
        true
    }
}
