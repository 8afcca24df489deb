//! Work about many users at once: each shard gets its part, and the parts do not wait for each other's buckets.

use anyhow::anyhow;
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Part, Router};
use crate::consumer::{ApplyError, BatchCounts, MissingRow};
use crate::parked::Parked;
use crate::shards::bucket::Bucket;
use crate::shards::map::Owner;
use crate::shards::ownership::{Ownership, Unowned};
use crate::telemetry::log_text;

/// Rounds in which a batch is done before the rest of it comes again with others.
const ROUNDS_MAX: usize = 3;

impl Router {
    /// Does `work` about a batch, on each shard the items that it owns; `users` are those of the items. Returns a result per
    /// item, in order. `None`: the item's bucket is being moved, and it has to come again.
    pub async fn each<R, F>(
        &self,
        users: &[Uuid],
        work: impl Fn(Ownership, Vec<usize>) -> F,
    ) -> Vec<Option<anyhow::Result<R>>>
    where
        F: Future<Output = anyhow::Result<Vec<R>>>,
    {
        let mut results: Vec<Option<anyhow::Result<R>>> = users.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..users.len()).collect();
        for _ in 0..ROUNDS_MAX {
            let of_left: Vec<Uuid> = left.iter().map(|&item| users[item]).collect();
            let parts = self.split(&of_left).await;
            for item in parts.away {
                results[left[item]] = Some(Err(Unowned::Away.into()));
            }
            for (item, why) in parts.unavailable {
                results[left[item]] = Some(Err(why.into()));
            }
            let done = parts.owned.into_iter().map(|part| {
                let items: Vec<usize> = part.items.iter().map(|&item| left[item]).collect();
                let (known, work) = (part.ownership.clone(), work(part.ownership, items.clone()));
                async move { (known, items, work.await) }
            });
            let mut again = Vec::new();
            for (known, items, done) in join_all(done).await {
                match done {
                    Ok(done) => {
                        items.into_iter().zip(done).for_each(|(item, done)| results[item] = Some(Ok(done)));
                    }
                    Err(error) if self.was_refused(&known, &error).await => again.extend(items),
                    Err(error) => {
                        let text = log_text(&error);
                        items.into_iter().for_each(|item| results[item] = Some(Err(anyhow!(text.clone()))));
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            left = again;
        }
        results
    }

    /// Applies a batch of events, on each shard those that it owns, and parks `unreadable`: each part in a transaction of its
    /// own. `users` are those of the events. `work` gets the indices of its events, and its messages to park.
    ///
    /// # Errors
    /// When buckets are being moved, or shards are away: nothing of those was applied then. When rows are missing or a shard failed: the other parts may be
    /// applied, and applying them again changes nothing.
    pub async fn apply<F>(
        &self,
        users: &[Uuid],
        unreadable: &[Parked],
        work: impl Fn(Ownership, Vec<usize>, Vec<Parked>) -> F,
    ) -> Result<BatchCounts, ApplyError>
    where
        F: Future<Output = Result<BatchCounts, ApplyError>>,
    {
        let mut parts = self.split(users).await;
        let is_contested = |(_, why): &mut (usize, Unowned)| *why == Unowned::Contested;
        // Nobody else waits until an operator has found out whose they are.
        parts.away.extend(parts.unavailable.extract_if(.., is_contested).map(|(item, _)| item));
        if let Some((_, why)) = parts.unavailable.pop() {
            return Err(why.into());
        }
        if !parts.away.is_empty() {
            return Err(ApplyError::Absent(parts.away));
        }
        if !parts.moving.is_empty() {
            return Err(ApplyError::Moving(parts.moving));
        }
        let (mut counts, mut missing) = (BatchCounts::default(), Vec::new());
        for (part, unreadable) in self.with_unreadable(parts.owned, unreadable) {
            let (known, items) = (part.ownership.clone(), part.items.clone());
            match work(part.ownership, part.items, unreadable).await {
                Ok(done) => counts = counts.plus(done),
                Err(ApplyError::Missing(rows)) => missing.extend(
                    rows.into_iter().map(|row| MissingRow { index: items[row.index], what: row.what }),
                ),
                Err(ApplyError::Other(error)) => {
                    self.was_refused(&known, &error).await;
                    return Err(match self.away().contains(&known.shard) {
                        true => ApplyError::Absent(items),
                        false => ApplyError::Other(error),
                    });
                }
                Err(other @ (ApplyError::Moving(_) | ApplyError::Absent(_))) => return Err(other),
            }
        }
        if missing.is_empty() { Ok(counts) } else { Err(ApplyError::Missing(missing)) }
    }

    /// Adds the messages to park. They have no user: the hash of a message's id says which shard has it, so that the same
    /// message is parked once. Where that one cannot be asked, any other may have it.
    fn with_unreadable(&self, owned: Vec<Part>, unreadable: &[Parked]) -> Vec<(Part, Vec<Parked>)> {
        let mut parts: Vec<(Part, Vec<Parked>)> = owned.into_iter().map(|part| (part, Vec::new())).collect();
        let (map, reading) = self.current();
        for message in unreadable {
            let shard = match map.owner(Bucket::of_text(&message.parked_id)) {
                Owner::Shard(holder) => holder.shard,
                Owner::Nobody | Owner::Away | Owner::Contested => 0,
            };
            match parts.iter_mut().find(|(part, _)| part.ownership.shard == shard) {
                Some((_, messages)) => messages.push(message.clone()),
                None => {
                    let part = Part { ownership: self.nothing_of(shard, reading), items: Vec::new() };
                    parts.push((part, vec![message.clone()]));
                }
            }
        }
        parts
    }

    /// As [`Router::was_refused`], of a batch.
    pub async fn was_refused_in(&self, known: &Ownership, error: &ApplyError) -> bool {
        match error {
            ApplyError::Other(error) => self.was_refused(known, error).await,
            ApplyError::Missing(_) | ApplyError::Moving(_) | ApplyError::Absent(_) => false,
        }
    }
}
