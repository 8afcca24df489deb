//! The model: what can happen next, and what it does.

use saga::parked::acts::Act;
use stateright::{Model, Property};

use crate::bounds::{Bounds, Break};
use crate::gateway::Verdict;
use crate::operators::Said;
use crate::properties;
use crate::readers::{Batch, Reader, Topic};
use crate::state::{Id, Queue, State, Task, Wrong};
use crate::tasks::TaskStep;

#[derive(Clone, Debug)]
pub struct Coro {
    pub bounds: Bounds,
    pub broken: Option<Break>,
    /// Names of what has to be reached, see [`properties::SOMETIMES`].
    pub reached: &'static [&'static str],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A consumer applies what it read, and stores its offsets.
    Apply(Reader, Batch),
    /// The consumer dies between its commit and its offset, or the relay emits again from an earlier position.
    Rewind(Topic, usize),
    /// A second instance reads the next record and its rows.
    ZombieReads(Topic),
    /// A request to cancel reads its row.
    CancelReads(Id),
    ZombieWrites,
    /// The user asks to cancel.
    Cancel(Id),
    /// A message is taken, its intent committed, and it is acknowledged.
    Work(Id),
    /// A message that nobody emitted, with another amount.
    ForgedWork(Id),
    /// The message comes again: it was not acknowledged in time, or re-emitted.
    Redeliver(Id),
    DeadlinePasses(Id),
    Task(Id, Task, TaskStep),
    /// A sweeper sees that a lease or a pause is over. `early`: its owner still works.
    Sweep {
        id: Id,
        early: bool,
    },
    /// An inquiry that is due is claimed.
    Inquire {
        id: Id,
        delay_over: bool,
    },
    /// A request that nobody waits for any more arrives.
    StrayArrives(Id, usize, Verdict),
    StrayIsLost(Id, usize),
    /// The gateway decides what was pending.
    Decides(Id, usize, Verdict),
    BecomesVisible(Id),
    /// An operator says what became of a charge.
    Propose(Id, Said),
    /// Another operator confirms it.
    Confirm(Id),
    /// A consumer parks the next record of a topic, though it could be applied.
    SetAside(Topic),
    /// An operator deals with a parked message.
    Mend(usize, Act),
    /// Redis.
    CacheEnded(Id),
    EvictEnded(Id),
    /// A slot is lost; every row of its database is re-emitted.
    SlotLost(Source),
    /// Broken only: offsets are stored and the batch is not applied.
    Skip(Reader, Batch),
    /// Broken only: the message is lost on its way, or is thought to have been handled.
    WorkIsLost(Id),
    /// Broken only: the call begins before its row is there.
    CallEarly(Id),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Payments,
    Balance,
    Processor,
}

impl Coro {
    pub fn is_broken(&self, what: Break) -> bool {
        self.broken == Some(what)
    }

    /// Does it; false if it cannot be done now.
    pub fn act(&self, state: &mut State, action: &Action) -> bool {
        if self.bounds.faults.is_some() && is_fault(action) {
            state.faults += 1;
        }
        match action {
            Action::Apply(reader, batch) => {
                return self.apply(state, *reader, *batch) || state.wrong == Some(Wrong::Missing);
            }
            Action::Skip(_, batch) => self.skip(state, *batch),
            Action::Rewind(topic, to) => *topic.position(&mut state.topics) = *to,
            Action::ZombieReads(topic) => self.zombie_reads(state, *topic),
            Action::CancelReads(id) => self.cancel_reads(state, *id),
            Action::ZombieWrites => self.zombie_writes(state),
            Action::Cancel(id) => {
                let observed = state.lives[*id].row;
                return self.request_cancel(state, *id, &observed);
            }
            Action::Work(id) => self.take_work(state, *id),
            Action::ForgedWork(id) => self.take_forged_work(state, *id),
            Action::Task(id, task, step) => return self.step(state, *id, *task, *step),
            Action::Sweep { id, .. } => self.sweep(state, *id),
            Action::Inquire { id, delay_over } => self.claim(state, *id, *delay_over),
            Action::Redeliver(id) => state.lives[*id].queue = Queue::Waiting,
            Action::DeadlinePasses(id) => state.lives[*id].past_deadline = true,
            Action::StrayArrives(id, key, verdict) => {
                let life = &mut state.lives[*id];
                life.strays &= !(1 << key);
                let _ = life.books.arrives(*key, *verdict, &self.bounds);
            }
            Action::StrayIsLost(id, key) => state.lives[*id].strays &= !(1 << key),
            Action::Decides(id, key, verdict) => {
                state.lives[*id].books.decides(*key, *verdict, &self.bounds);
            }
            Action::BecomesVisible(id) => state.lives[*id].books.visible = true,
            Action::Propose(id, said) => self.propose(state, *id, *said),
            Action::Confirm(id) => self.confirm(state, *id),
            Action::SetAside(topic) => self.set_aside(state, *topic),
            Action::Mend(nth, act) => return self.mend(state, *nth, *act),
            Action::CacheEnded(id) => state.lives[*id].cached_as_ended = true,
            Action::EvictEnded(id) => state.lives[*id].cached_as_ended = false,
            Action::SlotLost(source) => self.re_emit(state, *source),
            Action::WorkIsLost(id) => self.lose_work(state, *id),
            Action::CallEarly(id) => self.call_early(state, *id),
        }
        true
    }
}

/// Actions that no component wants. Declines, cancels, deadlines and the order of things are not among them.
fn is_fault(action: &Action) -> bool {
    match action {
        Action::Rewind(..)
        | Action::ZombieReads(_)
        | Action::Redeliver(_)
        | Action::ForgedWork(_)
        | Action::StrayIsLost(..)
        | Action::EvictEnded(_)
        | Action::SlotLost(_)
        | Action::SetAside(_)
        | Action::Skip(..)
        | Action::WorkIsLost(_)
        | Action::CallEarly(_) => true,
        Action::Sweep { early, .. } => *early,
        Action::Task(_, _, step) => match step {
            TaskStep::DoesNotSend
            | TaskStep::TimesOut
            | TaskStep::IsAnsweredByAnother(_)
            | TaskStep::WritesWithoutAnswer
            | TaskStep::Fails
            | TaskStep::Dies => true,
            TaskStep::Sends
            | TaskStep::IsAnswered(_)
            | TaskStep::Writes
            | TaskStep::Asks
            | TaskStep::Repairs => false,
        },
        Action::Apply(..)
        | Action::CancelReads(_)
        | Action::ZombieWrites
        | Action::Cancel(_)
        | Action::Work(_)
        | Action::DeadlinePasses(_)
        | Action::Inquire { .. }
        | Action::StrayArrives(..)
        | Action::Decides(..)
        | Action::BecomesVisible(_)
        | Action::Propose(..)
        | Action::Confirm(_)
        | Action::Mend(..)
        | Action::CacheEnded(_) => false,
    }
}

impl Model for Coro {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.bounds)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let begun = actions.len();
        self.relay_actions(state, actions);
        self.asking(state, actions);
        self.setting_aside(state, actions);
        for id in 0..state.lives.len() {
            self.working(state, id, actions);
            self.at_the_gateway(state, id, actions);
            self.mending(&state.lives[id], id, actions);
        }
        if self.bounds.faults.is_some_and(|most| state.faults >= most) {
            let mut kept = actions.split_off(begun);
            kept.retain(|action| !is_fault(action));
            actions.append(&mut kept);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut after = before.clone();
        self.act(&mut after, &action).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = properties::ALWAYS.iter().map(|(name, holds)| Property::always(name, *holds));
        let sometimes = properties::SOMETIMES.iter().filter(|(name, _)| self.reached.contains(name));
        always.chain(sometimes.map(|(name, reached)| Property::sometimes(name, *reached))).collect()
    }
}
