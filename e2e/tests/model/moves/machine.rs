//! The model of moves: what can happen next, and what it does.

use coroctl::shard::moves::Step;
use stateright::{Model, Property};

use super::properties;
use super::state::{Mover, Plan, Shard, State, Statement, Transaction};

#[derive(Clone, Debug)]
pub struct Moves {
    pub bounds: Bounds,
    pub broken: Option<Break>,
    /// Names of what has to be reached, see [`properties::SOMETIMES`].
    pub reached: &'static [&'static str],
}

/// The bounds of an exhaustive exploration.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Moves of the bucket: there, back, and so on.
    pub moves: u8,
    /// Writes besides the first.
    pub writes: u8,
    /// Transactions of services at the same time.
    pub transactions: usize,
    /// Promotions of a standby, of either shard.
    pub promotions: u8,
    /// Deaths of the mover. The statement that it had sent may arrive at any later time, or never.
    pub kills: u8,
    /// Times that a fence has been up for too long.
    pub lifts: u8,
    /// An operator may abort.
    pub aborts: bool,
}

/// Planted mistakes, each in what surrounds the decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A service's statement does not ask whether the bucket is owned here.
    OwnershipNotChecked,
    /// The mover does not wait for transactions whose snapshot is older than the fence.
    SnapshotOlderThanFence,
    /// The grant does not wait until the target has the source's LSN.
    NoWaitForLsn,
    /// The source takes its buckets back while a grant may still come.
    RollbackWithoutBar,
    /// The grant does not wait until the source's relay has acknowledged the LSN.
    GrantBeforeRelay,
    /// The relay emits commits that the standby does not have.
    EmittedBeforeStandby,
    /// A removal looks at the bucket alone, which is not owned while it is on its way back.
    RemovalIgnoresRecord,
    /// The target is emptied though its subscription exists.
    EmptiedWhileCopying,
    /// A move goes on after a promotion.
    IncarnationsNotCompared,
    /// The relay of the target emits the copies.
    CopiesEmitted,
    /// A rolled back move is closed though a fence may just have come.
    ClosedThoughFenced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A service's transaction takes its snapshot.
    Begin(usize),
    Commit(Transaction),
    /// It ends without an effect.
    Ends(Transaction),
    /// The standby flushes the next commit.
    Flush(usize),
    Promote(usize),
    Emit(usize),
    /// The target applies the next row.
    Apply,
    /// The mover decides, and sends the statement.
    Decide,
    Execute,
    KillMover {
        arrives: bool,
    },
    OrphanArrives,
    /// 150 ms are over, 300 ms are over.
    IsImpatient,
    IsLate,
    Abort,
    BeginMove,
}

impl Moves {
    pub fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Begin(shard) => {
                let observed = state.shards[shard].flushed.row.len();
                state.running.push(Transaction { shard, observed, commits: false, awaited: false });
                state.running.sort_unstable();
            }
            Action::Commit(transaction) => {
                if !self.commits(state, transaction) {
                    end(state, transaction);
                }
            }
            Action::Ends(transaction) => end(state, transaction),
            Action::Flush(shard) => self.flush(state, shard),
            Action::Promote(shard) => {
                state.faults.promotions += 1;
                Self::promote(state, shard);
            }
            Action::Emit(shard) => self.emit(state, shard),
            Action::Apply => self.apply(state),
            Action::Decide => {
                if let Some(statement) = self.decide(state) {
                    self.send(state, statement);
                }
            }
            Action::Execute => {
                if let Some(statement) = state.mover.sent.take() {
                    self.execute(state, statement);
                    forget(state, statement);
                }
            }
            Action::KillMover { arrives } => {
                state.faults.kills += 1;
                state.kill_mover(arrives);
            }
            Action::OrphanArrives => {
                if let Some(statement) = state.orphan.take() {
                    self.execute(state, statement);
                }
            }
            Action::IsImpatient => state.mover.is_impatient = true,
            Action::IsLate => {
                state.faults.lifts += 1;
                state.mover.is_late = true;
            }
            Action::Abort => state.plan.abort_requested = true,
            Action::BeginMove => begin_move(state),
        }
    }

    fn services(&self, state: &State, actions: &mut Vec<Action>) {
        let writes_left = state.writes <= self.bounds.writes;
        for (number, shard) in state.shards.iter().enumerate() {
            let room = state.running.len() < self.bounds.transactions && writes_left;
            if room && self.passes(shard) {
                actions.push(Action::Begin(number));
            }
            if !shard.ahead.is_empty() {
                actions.push(Action::Flush(number));
            }
            if state.faults.promotions < self.bounds.promotions {
                actions.push(Action::Promote(number));
            }
            if self.may_emit(shard) {
                actions.push(Action::Emit(number));
            }
        }
        for transaction in state.running.iter().filter(|transaction| !transaction.commits) {
            actions.push(Action::Ends(*transaction));
            if writes_left {
                actions.push(Action::Commit(*transaction));
            }
        }
    }

    fn moving(&self, state: &State, actions: &mut Vec<Action>) {
        let (mover, faults) = (&state.mover, state.faults);
        if may_apply(state) {
            actions.push(Action::Apply);
        }
        if mover.sent.is_some() {
            actions.push(Action::Execute);
        } else if !state.shards.iter().any(Shard::commits_a_step) && self.decide(state).is_some() {
            actions.push(Action::Decide);
        }
        if faults.kills < self.bounds.kills {
            actions.push(Action::KillMover { arrives: false });
            if mover.sent.is_some() {
                actions.push(Action::KillMover { arrives: true });
            }
        }
        if state.orphan.is_some() {
            actions.push(Action::OrphanArrives);
        }
        let waits = mover.has_listed || mover.lsn.is_some();
        if waits && !mover.is_impatient && state.running.iter().any(|transaction| transaction.awaited) {
            actions.push(Action::IsImpatient);
        }
        if waits && !mover.is_late && faults.lifts < self.bounds.lifts {
            actions.push(Action::IsLate);
        }
        if self.bounds.aborts && !state.plan.abort_requested && !properties::has_ended(state) {
            actions.push(Action::Abort);
        }
        if state.plan.number < self.bounds.moves && properties::has_ended(state) {
            actions.push(Action::BeginMove);
        }
    }
}

/// What the mover knew of an attempt is of no use in the next.
fn forget(state: &mut State, statement: Statement) {
    if matches!(statement.step, Step::Grant | Step::TakeBack) {
        state.kill_mover(false);
    }
}

/// The target's apply worker runs, and has something to apply.
pub fn may_apply(state: &State) -> bool {
    let streams = state.stream.as_ref().is_some_and(|stream| !stream.is_empty());
    streams && state.shards[state.plan.target()].latest().subscribed
}

fn end(state: &mut State, transaction: Transaction) {
    if let Some(at) = state.running.iter().position(|other| *other == transaction) {
        state.running.remove(at);
    }
}

/// The bucket goes from the shard that has it to the other.
fn begin_move(state: &mut State) {
    let source = state.authority;
    state.mover = Mover::default();
    state.plan = Plan {
        number: state.plan.number + 1,
        source,
        promotions: [state.shards[source].promotions, state.shards[1 - source].promotions],
        abort_requested: false,
        lifted: state.plan.lifted,
    };
}

impl Model for Moves {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.services(state, actions);
        self.moving(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut after = before.clone();
        self.act(&mut after, action);
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = properties::ALWAYS.iter().map(|(name, holds)| Property::always(name, *holds));
        let sometimes = properties::SOMETIMES.iter().filter(|(name, _)| self.reached.contains(name));
        always.chain(sometimes.map(|(name, reached)| Property::sometimes(name, *reached))).collect()
    }
}
