//! What must hold while buckets move, and what must be reached, so that it holds of something.

use coroctl::shard::moves::{Outcome, Record, Step, next};

use super::machine::{Action, Moves, may_apply};
use super::state::{State, Wrong};

type Condition = fn(&Moves, &State) -> bool;

pub const WRITABLE_ONCE: &str = "a bucket is writable on one shard at most";
pub const ACCEPTED_KEPT: &str = "S4 no accepted write is lost";
pub const EVENTS_IN_ORDER: &str = "T2 the events of a subject never go back";
pub const EVENTS_HAVE_ROWS: &str = "T3 no event without its row";
pub const READS_COMPLETE: &str = "a read that is answered has every accepted row";
pub const MOVES_END: &str = "every move ends once faults heal";
pub const NO_CONTRADICTION: &str = "no decision meets a contradiction, no copy a row";
pub const EPOCHS_RISE: &str = "an owner has a higher epoch than any before";

pub const ALWAYS: &[(&str, Condition)] = &[
    (WRITABLE_ONCE, |_, state| {
        let writable = |number: usize| {
            let owned = state.shards[number].flushed.bucket.owned;
            owned || state.running.iter().any(|transaction| transaction.shard == number)
        };
        !(writable(0) && writable(1))
    }),
    (ACCEPTED_KEPT, |_, state| state.shards[state.authority].flushed.row == state.accepted),
    (EVENTS_IN_ORDER, |_, state| state.wrong != Some(Wrong::EventOrder)),
    (EVENTS_HAVE_ROWS, |_, state| state.shards[state.authority].latest().row.starts_with(&state.topic)),
    (READS_COMPLETE, |moves, state| {
        state
            .shards
            .iter()
            .all(|shard| !moves.passes(shard) || shard.flushed.row.starts_with(&state.accepted))
    }),
    (NO_CONTRADICTION, |_, state| !matches!(state.wrong, Some(Wrong::Contradiction | Wrong::CopyConflict))),
    (EPOCHS_RISE, |_, state| state.wrong != Some(Wrong::EpochFell)),
    (MOVES_END, |moves, state| moves.healed(state).is_some_and(|quiescent| moves.is_quiescent(&quiescent))),
];

pub const MOVED: &str = "moved";
pub const MOVED_AFTER_WRITES: &str = "moved, with writes before and after";
pub const ROLLED_BACK: &str = "rolled back";
pub const LIFTED_THEN_MOVED: &str = "moved after a fence was lifted";
pub const ORPHANED_GRANT: &str = "a grant on its way after the bucket was taken back";
pub const ORPHANED_FENCE: &str = "a fence on its way after the end";
pub const PROMOTED_BEFORE: &str = "rolled back after a promotion";
pub const PROMOTED_AFTER: &str = "moved though a shard was promoted after the grant";
pub const THERE_AND_BACK: &str = "moved there and back";
pub const UNEMITTED_FENCED: &str = "fenced with a write that is not emitted";
pub const AHEAD_OF_STANDBY: &str = "copied before the standby has it";

pub const SOMETIMES: &[(&str, Condition)] = &[
    (MOVED, |moves, state| ends(moves, state, Outcome::Moved)),
    (MOVED_AFTER_WRITES, |moves, state| ends(moves, state, Outcome::Moved) && state.topic.len() > 2),
    (ROLLED_BACK, |moves, state| ends(moves, state, Outcome::RolledBack)),
    (LIFTED_THEN_MOVED, |moves, state| ends(moves, state, Outcome::Moved) && state.plan.lifted),
    (ORPHANED_GRANT, |_, state| {
        let grant = state.orphan.is_some_and(|statement| statement.step == Step::Grant);
        grant && state.shards[state.plan.source()].flushed.bucket.owned
    }),
    (ORPHANED_FENCE, |_, state| {
        state.orphan.is_some_and(|statement| statement.step == Step::Fence) && has_ended(state)
    }),
    (PROMOTED_BEFORE, |moves, state| ends(moves, state, Outcome::RolledBack) && state.faults.promotions > 0),
    (PROMOTED_AFTER, |moves, state| ends(moves, state, Outcome::Moved) && state.faults.promotions > 0),
    (THERE_AND_BACK, |moves, state| ends(moves, state, Outcome::Moved) && state.plan.number == 2),
    (UNEMITTED_FENCED, |_, state| {
        let source = &state.shards[state.plan.source()];
        !source.flushed.bucket.owned && source.unemitted.len() > 1
    }),
    (AHEAD_OF_STANDBY, |_, state| {
        let (source, target) = (&state.shards[state.plan.source()], &state.shards[state.plan.target()]);
        target.flushed.row.len() > source.flushed.row.len() && !source.flushed.row.is_empty()
    }),
];

fn ends(moves: &Moves, state: &State, outcome: Outcome) -> bool {
    next(&moves.observe(state).1) == Step::Done(outcome) && has_ended(state)
}

/// Both shards have closed their records of the present move.
pub fn has_ended(state: &State) -> bool {
    let closed = |number: usize| {
        let record = state.shards[number].flushed.record_of(state.plan.number);
        matches!(record, Record::Closed(_))
    };
    closed(state.plan.source()) && (closed(state.plan.target()) || never_claimed(state))
}

fn never_claimed(state: &State) -> bool {
    state.shards[state.plan.target()].flushed.record_of(state.plan.number) == Record::Absent
}

/// More than any run needs.
const STEPS_MAX: usize = 100;

impl Moves {
    /// The end of a run without faults, in which no new transaction begins; `None` if it has none.
    pub fn healed(&self, state: &State) -> Option<State> {
        let mut state = state.clone();
        for _ in 0..STEPS_MAX {
            let Some(action) = self.goes_well(&state) else { return Some(state) };
            self.act(&mut state, action);
        }
        None
    }

    fn goes_well(&self, state: &State) -> Option<Action> {
        let shards = state.shards.iter().enumerate();
        let flush = shards.clone().find(|(_, shard)| !shard.ahead.is_empty());
        let emit = shards.clone().find(|(_, shard)| self.may_emit(shard));
        if let Some((number, _)) = flush {
            Some(Action::Flush(number))
        } else if let Some(transaction) = state.running.first() {
            Some(Action::Ends(*transaction))
        } else if let Some((number, _)) = emit {
            Some(Action::Emit(number))
        } else if may_apply(state) {
            Some(Action::Apply)
        } else if state.mover.sent.is_some() {
            Some(Action::Execute)
        } else {
            self.decide(state).is_some().then_some(Action::Decide)
        }
    }

    /// The move has ended, one shard owns the bucket and has all of it, and every version is emitted.
    pub fn is_quiescent(&self, state: &State) -> bool {
        let owner = &state.shards[state.authority].flushed;
        let other = &state.shards[1 - state.authority].flushed;
        // After a rollback the target may have rows, of a subscription that came late: the next move deletes them first.
        let is_clean = match next(&self.observe(state).1) {
            Step::Done(Outcome::Moved) => other.row.is_empty(),
            Step::Done(Outcome::RolledBack) => true,
            _ => false,
        };
        is_clean
            && owner.bucket.owned
            && !other.bucket.owned
            && state.stream.is_none()
            && owner.row == state.topic
    }
}
