//! The mover: it observes both shards, takes the real decision, and sends one statement at a time.

use std::time::Duration;

use coroctl::shard::moves::{
    AtSource, AtTarget, Attempt, Drain, FENCE_MAX, Observed, Record, Side, Step, Subscription,
    TRANSACTION_MAX, next,
};

use super::machine::{Break, Moves};
use super::state::{Database, State, Statement, StreamedRow, Wrong};

impl Moves {
    /// What a mover reads: only what the standbys have.
    pub fn observe(&self, state: &State) -> (Attempt, Observed) {
        let number = state.plan.number;
        let (source, target) = (&state.shards[state.plan.source()], &state.shards[state.plan.target()]);
        let source_record = source.flushed.record_of(number);
        let attempt = match source_record {
            Record::Absent => Attempt {
                source_epoch: source.flushed.bucket.epoch,
                target_epoch: target.flushed.bucket.epoch,
            },
            Record::Open | Record::Closed(_) => source.flushed.attempt,
        };
        let mover = &state.mover;
        let fenced_for = match (mover.is_late, mover.is_impatient) {
            (true, true | false) => FENCE_MAX,
            (false, true) => TRANSACTION_MAX,
            (false, false) => Duration::ZERO,
        };
        let promotions = [source.promotions, target.promotions];
        let observed = Observed {
            source: AtSource::of(source.flushed.bucket, attempt),
            target: AtTarget::of(target.flushed.bucket, attempt),
            source_record,
            target_record: target.flushed.record_of(number),
            has_slot: state.stream.is_some(),
            subscription: subscription(state),
            source_has_rows: !source.flushed.row.is_empty(),
            target_has_rows: !target.flushed.row.is_empty(),
            drain: self.drain(state),
            fenced_for,
            grant_recorded: source.flushed.record_of == number && source.flushed.granted,
            abort_requested: state.plan.abort_requested,
            same_incarnations: promotions == state.plan.promotions
                || self.broken == Some(Break::IncarnationsNotCompared),
        };
        (attempt, observed)
    }

    fn drain(&self, state: &State) -> Drain {
        let runs = state.running.iter().any(|transaction| transaction.awaited);
        let waits = self.broken != Some(Break::SnapshotOlderThanFence);
        match state.mover.lsn {
            None if waits && !state.mover.has_listed => Drain::Unknown,
            None if waits && runs => Drain::Running,
            None => Drain::Ended,
            Some((to_apply, to_emit)) => Drain::At {
                target_has_flushed: to_apply == 0 || self.broken == Some(Break::NoWaitForLsn),
                relay_has_acknowledged: to_emit == 0 || self.broken == Some(Break::GrantBeforeRelay),
            },
        }
    }

    /// The step that a mover takes now; `None` while it waits, or has nothing left to do.
    pub fn decide(&self, state: &State) -> Option<Statement> {
        let (attempt, observed) = self.observe(state);
        let step = match next(&observed) {
            Step::Bar if self.broken == Some(Break::RollbackWithoutBar) => Step::TakeBack,
            step => step,
        };
        match step {
            Step::AwaitCopy
            | Step::AwaitTransactions
            | Step::AwaitTarget
            | Step::AwaitRelay
            | Step::Done(_) => None,
            _ => Some(Statement { step, attempt, number: state.plan.number, shard: at(state, step) }),
        }
    }

    /// Steps in the mover's own memory, or whose effect is not guarded by a row, are taken at once. The others are sent.
    pub fn send(&self, state: &mut State, statement: Statement) {
        match statement.step {
            Step::ListTransactions => {
                let source = state.plan.source();
                for transaction in state.running.iter_mut().filter(|t| t.shard == source) {
                    transaction.awaited = true;
                }
                state.running.sort_unstable();
                state.mover.has_listed = true;
            }
            // A commit that waits for its standby stays in the WAL, and nobody waits for its answer any more.
            Step::EndTransactions => state.running.retain(|transaction| !transaction.awaited),
            Step::TakeLsn => {
                let to_apply = state.stream.as_ref().map_or(0, Vec::len);
                state.mover.lsn = Some((to_apply, state.shards[state.plan.source()].unemitted.len()));
            }
            Step::Refuse(_) => state.went_wrong(Wrong::Contradiction),
            _ => state.mover.sent = Some(statement),
        }
    }

    /// The server executes a statement: all of it, or nothing.
    pub fn execute(&self, state: &mut State, statement: Statement) {
        let Statement { step, attempt, number, shard } = statement;
        let mut database = state.shards[shard].latest().clone();
        let record = database.record_of(number);
        let overlooked = step == Step::Remove && self.broken == Some(Break::RemovalIgnoresRecord);
        if step.locks_open_record().is_some() && record != Record::Open && !overlooked {
            return;
        }
        let overlooked = matches!(step, Step::Close(..)) && self.broken == Some(Break::ClosedThoughFenced);
        if !step.permits(attempt, database.bucket) && !overlooked {
            return;
        }
        if let Some(change) = step.compare_and_set(attempt) {
            let refused = step == Step::Grant && !is_ready(state, &database);
            if change.known != database.bucket.epoch || refused {
                return;
            }
            database.bucket = change.next;
        }
        match step {
            Step::Announce(side) => announce(&mut database, number, side, attempt),
            Step::Empty if database.subscribed && self.broken != Some(Break::EmptiedWhileCopying) => {}
            Step::Empty | Step::Remove => database.row.clear(),
            // A slot is not undone by a promotion: the worst case is that it is kept.
            Step::MakeSlot => _ = state.stream.get_or_insert_default(),
            Step::DropSlot => state.stream = None,
            Step::Subscribe => subscribe(state, &mut database),
            Step::Unsubscribe if database.record_of == number => database.subscribed = false,
            Step::TakeBack => {
                database.attempt = attempt.after_rollback();
                state.plan.lifted = true;
            }
            Step::RecordGrant => database.granted = true,
            Step::Close(_, outcome) => database.record = Record::Closed(outcome),
            _ => {}
        }
        if database != *state.shards[shard].latest() {
            state.shards[shard].commit(database);
        }
    }
}

/// The shard on which a step is made.
fn at(state: &State, step: Step) -> usize {
    match step {
        Step::Announce(Side::Source)
        | Step::MakeSlot
        | Step::Fence
        | Step::TakeBack
        | Step::RecordGrant
        | Step::Remove
        | Step::DropSlot
        | Step::Close(Side::Source, _) => state.plan.source(),
        _ => state.plan.target(),
    }
}

/// What a grant compares besides the epoch, in its transaction: the target is in the incarnation that the record names.
fn is_ready(state: &State, database: &Database) -> bool {
    let promoted = state.shards[state.plan.target()].promotions != state.plan.promotions[1];
    database.subscribed && !promoted
}

fn subscription(state: &State) -> Subscription {
    let (source, target) = (&state.shards[state.plan.source()], &state.shards[state.plan.target()]);
    let subscribed = target.flushed.subscribed && target.flushed.record_of == state.plan.number;
    let rows = &target.flushed.row;
    match subscribed {
        false => Subscription::Absent,
        true if source.flushed.row.starts_with(rows) && !rows.is_empty() => Subscription::Follows,
        true => Subscription::Copying,
    }
}

/// Writes the record of a move, unless it is there or another is open.
fn announce(database: &mut Database, number: u8, side: Side, attempt: Attempt) {
    let is_busy = database.record == Record::Open;
    if is_busy || database.record_of(number) != Record::Absent {
        return;
    }
    (database.record_of, database.record, database.subscribed) = (number, Record::Open, false);
    database.granted = false;
    database.attempt = match side {
        Side::Source => attempt,
        Side::Target => Attempt::default(),
    };
}

fn subscribe(state: &mut State, database: &mut Database) {
    let row = state.shards[state.plan.source()].latest().row.clone();
    let Some(stream) = &mut state.stream else { return };
    if database.subscribed || !database.row.is_empty() {
        return;
    }
    database.subscribed = true;
    // What the slot had before is in the copy.
    *stream = (!row.is_empty()).then_some(StreamedRow { row, insert: true }).into_iter().collect();
}

impl State {
    /// The mover dies with all that it knew. What it had sent may still arrive.
    pub fn kill_mover(&mut self, arrives: bool) {
        let mover = std::mem::take(&mut self.mover);
        if arrives {
            // The lock of its session keeps these two from arriving late.
            let locked = |statement: &Statement| matches!(statement.step, Step::MakeSlot | Step::DropSlot);
            self.orphan = mover.sent.filter(|statement| !locked(statement));
        }
        for transaction in &mut self.running {
            transaction.awaited = false;
        }
        self.running.sort_unstable();
    }
}
