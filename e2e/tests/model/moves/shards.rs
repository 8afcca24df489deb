//! The shards: transactions of services, commits and their standbys, promotions, relays, and the copy.

use super::machine::{Break, Moves};
use super::state::{Shard, State, StreamedRow, Transaction, Write, Wrong};

impl Moves {
    /// Whether a statement of a service passes on this shard, in a snapshot taken now.
    ///
    /// A router may know anything that was ever true: it comes to any shard, with any epoch. Where the bucket is owned, some
    /// router knows the right epoch.
    pub fn passes(&self, shard: &Shard) -> bool {
        self.broken == Some(Break::OwnershipNotChecked) || shard.flushed.bucket.owned
    }

    /// False where the version that the transaction is about has changed: it ends without an effect.
    pub fn commits(&self, state: &mut State, transaction: Transaction) -> bool {
        let shard = &state.shards[transaction.shard];
        // The row's lock is held until the writer before is visible.
        if shard.latest().row != shard.flushed.row || shard.flushed.row.len() != transaction.observed {
            return false;
        }
        let write = state.writes;
        let mut database = shard.latest().clone();
        database.row.push(write);
        let row = database.row.clone();
        state.writes += 1;
        state.shards[transaction.shard].commit(database);
        state.shards[transaction.shard].unemitted.push((row.len(), write));
        if transaction.shard == state.plan.source()
            && let Some(stream) = &mut state.stream
        {
            stream.push(StreamedRow { insert: row.len() == 1, row });
        }
        if let Some(running) = state.running.iter_mut().find(|other| **other == transaction) {
            running.commits = true;
        }
        state.running.sort_unstable();
        true
    }

    /// The standby has flushed the next commit, which is now visible and answered.
    pub fn flush(&self, state: &mut State, number: usize) {
        let shard = &mut state.shards[number];
        let next = shard.ahead.remove(0);
        let before = std::mem::replace(&mut shard.flushed, next);
        let after = &shard.flushed;
        let granted = after.bucket.owned && !before.bucket.owned;
        let epoch_fell = granted && after.bucket.epoch <= state.owned_epoch;
        if granted {
            state.authority = number;
            state.owned_epoch = after.bucket.epoch;
        }
        if after.row.len() > before.row.len() {
            if state.authority == number && before.row == state.accepted {
                state.accepted.clone_from(&after.row);
            }
            state.running.retain(|transaction| transaction.shard != number || !transaction.commits);
        }
        if epoch_fell {
            state.went_wrong(Wrong::EpochFell);
        }
    }

    /// The standby becomes the primary: what it did not have is gone, with all that runs.
    pub fn promote(state: &mut State, number: usize) {
        let shard = &mut state.shards[number];
        shard.ahead.clear();
        shard.promotions += 1;
        let row = shard.flushed.row.clone();
        shard.unemitted.retain(|(version, write)| row.get(version - 1) == Some(write));
        state.running.retain(|transaction| transaction.shard != number);
        if number == state.plan.source()
            && let Some(stream) = &mut state.stream
        {
            stream.retain(|streamed| row.starts_with(&streamed.row));
        }
    }

    /// Whether the relay of the shard has something to emit.
    pub fn may_emit(&self, shard: &Shard) -> bool {
        shard.unemitted.first().is_some_and(|(version, write)| {
            self.broken == Some(Break::EmittedBeforeStandby)
                || shard.flushed.row.get(version - 1) == Some(write)
        })
    }

    pub fn emit(&self, state: &mut State, number: usize) {
        let (version, write) = state.shards[number].unemitted.remove(0);
        if number == state.plan.source()
            && let Some((_, to_emit)) = &mut state.mover.lsn
        {
            *to_emit = to_emit.saturating_sub(1);
        }
        publish(state, version, write);
    }

    /// The target's apply worker commits the next row.
    pub fn apply(&self, state: &mut State) {
        let target = state.plan.target();
        let Some(stream) = &mut state.stream else { return };
        let streamed = stream.remove(0);
        if let Some((to_apply, _)) = &mut state.mover.lsn {
            *to_apply = to_apply.saturating_sub(1);
        }
        let mut database = state.shards[target].latest().clone();
        match (streamed.insert, database.row.is_empty()) {
            (true, false) => state.went_wrong(Wrong::CopyConflict),
            // An update of a row that is not there is skipped.
            (false, true) => {}
            (true, true) | (false, false) => {
                database.row.clone_from(&streamed.row);
                state.shards[target].commit(database);
                if self.broken == Some(Break::CopiesEmitted)
                    && let Some(write) = streamed.row.last()
                {
                    state.shards[target].unemitted.push((streamed.row.len(), *write));
                }
            }
        }
    }
}

/// A record on the topic. An emission that repeats an earlier one says nothing new.
fn publish(state: &mut State, version: usize, write: Write) {
    match state.topic.get(version - 1) {
        Some(known) if *known == write => {}
        None if state.topic.len() + 1 == version => state.topic.push(write),
        Some(_) | None => state.went_wrong(Wrong::EventOrder),
    }
}
