//! Work about many users at once: each shard gets its part, and the parts do not wait for each other's buckets.

use anyhow::anyhow;
use futures_util::future::join_all;
use uuid::Uuid;

use super::in_time::is_slow;
use super::shard::Standing;
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
                async move { (known, items, self.in_time(work).await) }
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
    /// own, and all at the same time. `users` are those of the events. `work` gets the indices of its events, and its messages to
    /// park.
    ///
    /// # Errors
    /// When buckets are being moved, or shards are away: nothing of those was applied, or it is not known. When a shard serves, and did
    /// not end its part in time. When rows are missing or a shard failed: the other parts may be applied, and applying them again
    /// changes nothing.
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
        let parked_users: Vec<Uuid> = unreadable.iter().filter_map(Parked::user_id).collect();
        if self.are_several() && !parked_users.is_empty() {
            // Nobody may have asked for these before.
            self.split(&parked_users).await;
        }
        let works = self.with_unreadable(parts.owned, unreadable).into_iter().map(|(part, unreadable)| {
            let (known, items) = (part.ownership.clone(), part.items.clone());
            let work = work(part.ownership, part.items, unreadable);
            async move { (known, items, self.in_time(work).await) }
        });
        let mut applied = Applied::default();
        for (known, items, done) in join_all(works).await {
            match done.map_err(|error| in_batch(error, &items)) {
                Ok(done) => applied.counts = applied.counts.plus(done),
                Err(ApplyError::Missing(rows)) => applied.missing.extend(rows),
                Err(ApplyError::Other(error)) => {
                    self.was_refused(&known, &error).await;
                    let failure = match self.is_away(known.shard) {
                        true => Failure::Away,
                        false if self.are_several() && is_slow(&error) => Failure::Slow,
                        false => Failure::Other,
                    };
                    applied.failed(items, failure, error);
                }
                Err(other @ (ApplyError::Moving(_) | ApplyError::Absent(_) | ApplyError::Late(_))) => {
                    return Err(other);
                }
            }
        }
        applied.result()
    }

    /// Adds the messages to park. A message is parked on the shard of its user. One whose key is no user has the shard that the hash
    /// of its id names, so that it is parked once. Where that one cannot be asked, any other may have it.
    fn with_unreadable(&self, owned: Vec<Part>, unreadable: &[Parked]) -> Vec<(Part, Vec<Parked>)> {
        let mut parts: Vec<(Part, Vec<Parked>)> = owned.into_iter().map(|part| (part, Vec::new())).collect();
        if unreadable.is_empty() {
            return parts;
        }
        let ((map, reading), standings) = (self.current(), self.standings());
        for message in unreadable {
            let bucket = message.user_id().map_or_else(|| Bucket::of_text(&message.parked_id), Bucket::of);
            let owner = match map.owner(bucket) {
                Owner::Shard(holder) => Some(holder.shard),
                Owner::Nobody | Owner::Away | Owner::Contested => None,
            };
            let shard = parked_on(owner, &standings);
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
            ApplyError::Missing(_) | ApplyError::Moving(_) | ApplyError::Absent(_) | ApplyError::Late(_) => {
                false
            }
        }
    }
}

/// An error about a part of a batch, as one about the batch. `items`: the indices of the part's events in the batch.
fn in_batch(error: ApplyError, items: &[usize]) -> ApplyError {
    let of_batch = |events: Vec<usize>| events.into_iter().map(|event| items[event]).collect();
    match error {
        ApplyError::Missing(rows) => {
            let rows = rows.into_iter().map(|row| MissingRow { index: items[row.index], ..row });
            ApplyError::Missing(rows.collect())
        }
        ApplyError::Moving(events) => ApplyError::Moving(of_batch(events)),
        ApplyError::Absent(events) => ApplyError::Absent(of_batch(events)),
        ApplyError::Late(events) => ApplyError::Late(of_batch(events)),
        ApplyError::Other(error) => ApplyError::Other(error),
    }
}

/// What came of the parts of a batch.
#[derive(Default)]
struct Applied {
    counts: BatchCounts,
    missing: Vec<MissingRow>,
    /// The events of shards that are away.
    absent: Vec<usize>,
    /// The events that a shard that serves did not end in time.
    late: Vec<usize>,
    failed: Option<anyhow::Error>,
}

/// Why the part of one shard was not applied.
#[derive(Clone, Copy)]
enum Failure {
    Away,
    /// The shard serves, and its part was too much at once, or waited for a lock.
    Slow,
    Other,
}

impl Applied {
    /// The part with these events has failed. One without events waits for no user: it comes again, and then on another shard.
    fn failed(&mut self, items: Vec<usize>, failure: Failure, error: anyhow::Error) {
        match failure {
            Failure::Away if !items.is_empty() => self.absent.extend(items),
            Failure::Slow if !items.is_empty() => self.late.extend(items),
            Failure::Away | Failure::Slow | Failure::Other => self.failed = Some(error),
        }
    }

    /// Whoever is away is passed over first, and what is late is divided then, so that what else failed is tried without them.
    fn result(self) -> Result<BatchCounts, ApplyError> {
        let Self { counts, missing, absent, late, failed } = self;
        match failed {
            _ if !absent.is_empty() => Err(ApplyError::Absent(absent)),
            _ if !late.is_empty() => Err(ApplyError::Late(late)),
            Some(error) => Err(ApplyError::Other(error)),
            None if !missing.is_empty() => Err(ApplyError::Missing(missing)),
            None => Ok(counts),
        }
    }
}

/// The shard on which a message is parked: `owner`, if it can be asked, or else the first one that can.
fn parked_on(owner: Option<usize>, standings: &[Standing]) -> usize {
    let first = |wanted: Standing| standings.iter().position(|standing| *standing == wanted);
    let owner = owner.filter(|&shard| standings.get(shard) == Some(&Standing::Here));
    owner.or_else(|| first(Standing::Here)).or_else(|| first(Standing::Away)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Standing::{Away, Here, Unlisted};
    use super::*;

    #[test]
    fn a_message_is_parked_on_its_owner_or_on_one_that_can_be_asked() {
        for (owner, standings, expected) in [
            (Some(1), vec![Here, Here], 1),
            (Some(1), vec![Here, Away], 0),
            (Some(0), vec![Away, Here], 1),
            (Some(0), vec![Unlisted, Away, Here], 2),
            (Some(1), vec![Unlisted, Away], 1),
            (None, vec![Away, Here], 1),
            (None, vec![Unlisted, Away, Away], 1),
            (Some(0), vec![Here], 0),
            (None, vec![Here], 0),
        ] {
            assert_eq!(parked_on(owner, &standings), expected, "{owner:?} of {standings:?}");
        }
    }

    /// The name of an error, and the events that it is about.
    fn parts(error: ApplyError) -> (&'static str, Vec<usize>) {
        match error {
            ApplyError::Absent(items) => ("absent", items),
            ApplyError::Late(items) => ("late", items),
            ApplyError::Missing(rows) => ("missing", rows.into_iter().map(|row| row.index).collect()),
            ApplyError::Moving(items) => ("moving", items),
            ApplyError::Other(_) => ("other", Vec::new()),
        }
    }

    /// Otherwise others would wait, or be passed over.
    #[test]
    fn whatever_a_part_says_of_its_events_is_said_of_those_of_the_batch() {
        let row = |index| MissingRow { index, what: "row".to_owned() };
        for (error, name) in [
            (ApplyError::Missing(vec![row(0), row(2)]), "missing"),
            (ApplyError::Moving(vec![0, 2]), "moving"),
            (ApplyError::Absent(vec![0, 2]), "absent"),
            (ApplyError::Late(vec![0, 2]), "late"),
        ] {
            assert_eq!(parts(in_batch(error, &[3, 5, 8])), (name, vec![3, 8]));
        }
        assert_eq!(parts(in_batch(anyhow!("failed").into(), &[3])).0, "other");
    }

    /// Without an event the whole batch would come again as it is, and without a pause.
    #[test]
    fn events_are_passed_over_or_divided_where_there_are_some_and_before_anything_else_counts() {
        use Failure::{Away, Other, Slow};
        let failed = |failures: &[(&[usize], Failure)]| {
            let missing = vec![MissingRow { index: 7, what: "row".to_owned() }];
            let mut applied = Applied { missing, ..Applied::default() };
            for (items, failure) in failures {
                applied.failed(items.to_vec(), *failure, anyhow!("failed"));
            }
            parts(applied.result().unwrap_err())
        };
        let (none, one, two, more) = (&[][..], &[1][..], &[1, 2][..], &[3][..]);
        for (failures, expected, items) in [
            (vec![], "missing", vec![7]),
            // Of messages to park there is no event.
            (vec![(none, Away)], "other", vec![]),
            (vec![(none, Slow)], "other", vec![]),
            (vec![(one, Other)], "other", vec![]),
            (vec![(two, Away)], "absent", vec![1, 2]),
            (vec![(two, Away), (more, Other), (none, Away)], "absent", vec![1, 2]),
            (vec![(two, Slow)], "late", vec![1, 2]),
            (vec![(two, Slow), (more, Other), (none, Slow)], "late", vec![1, 2]),
            (vec![(two, Slow), (more, Slow)], "late", vec![1, 2, 3]),
            (vec![(two, Slow), (more, Away)], "absent", vec![3]),
        ] {
            assert_eq!(failed(&failures), (expected, items), "{} parts", failures.len());
        }
        assert!(Applied::default().result().is_ok());
    }
}
