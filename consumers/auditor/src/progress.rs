//! Pure: how far the topics and the rows have been compared.
//!
//! * A service with one database has one mark, by the newest record of its source: while the relay stands still, nothing is missing.
//! * A service with several databases has a mark for each shard, by what the shard says of its relay's slots: the newest record of
//!   another shard says nothing about it, and a shard without traffic has none. Each user has the mark of the shard that owns the
//!   user's bucket. A bucket is granted to another shard only once the relay has emitted what the first one wrote, so the mark of the
//!   new owner, taken after that, is true of all events of the bucket.
//! * The look at new rows has a mark for each bucket: it goes with the bucket from shard to shard.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use saga::shards::bucket::{BUCKETS, Bucket};
use uuid::Uuid;

/// The end of a shard's WAL at a time of its clock, and how far the relay has emitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub at: Timestamp,
    pub wal: u64,
    /// Where the slot is that is furthest behind; `None`: the shard has none.
    pub confirmed: Option<u64>,
}

/// Up to which time the events of one shard are on Kafka, and are read.
#[derive(Clone, Copy, Debug, Default)]
struct Watermark {
    /// The relay has not come to this end yet.
    awaited: Option<(Timestamp, u64)>,
    emitted: Option<Timestamp>,
    settled: Option<Timestamp>,
}

impl Watermark {
    fn observe(&mut self, position: &Position) {
        if let (Some((at, wal)), Some(confirmed)) = (self.awaited, position.confirmed)
            && confirmed >= wal
        {
            (self.emitted, self.awaited) = (Some(at), None);
        }
        self.awaited.get_or_insert((position.at, position.wal));
    }
}

/// The marks of the shards of each service that has several.
#[derive(Clone, Debug, Default)]
pub struct Watermarks(BTreeMap<&'static str, Vec<Watermark>>);

impl Watermarks {
    /// Takes where the shards of a service are, in their order. The ends of the topics are to be asked after this.
    pub fn observe(&mut self, service: &'static str, positions: &[Position]) {
        let marks = self.0.entry(service).or_default();
        marks.resize(positions.len(), Watermark::default());
        for (mark, position) in marks.iter_mut().zip(positions) {
            mark.observe(position);
        }
    }

    /// Every record up to these ends has been read. `settle` is longer than any transaction.
    ///
    /// # Errors
    /// When a time is none.
    pub fn read(&mut self, settle: Duration) -> Result<()> {
        for mark in self.0.values_mut().flatten() {
            let Some(emitted) = mark.emitted else { continue };
            mark.settled = Some(emitted.saturating_sub(settle).context("the time of a shard")?);
        }
        Ok(())
    }

    fn of(&self, service: &str, shard: usize) -> Option<Timestamp> {
        self.0.get(service)?.get(shard)?.settled
    }
}

/// How far the topics and the rows have been compared.
#[derive(Clone, Debug)]
pub struct Progress {
    /// By source: every record of a commit up to this time has been read.
    pub settled: BTreeMap<String, Timestamp>,
    /// The same of the services with several databases, by bucket.
    by_bucket: BTreeMap<&'static str, Vec<Timestamp>>,
    /// By bucket: every payment that was accepted up to this time is tracked, or done with.
    looked: Vec<Timestamp>,
}

impl Progress {
    pub fn begin(looked_until: Timestamp) -> Self {
        Self { settled: BTreeMap::new(), by_bucket: BTreeMap::new(), looked: vec![looked_until; BUCKETS] }
    }

    /// Every record that a source has emitted about the user, of a commit up to this time, has been read.
    pub fn of(&self, source: &str, user_id: Uuid) -> Timestamp {
        let known = match self.by_bucket.get(source) {
            Some(marks) => marks.get(Bucket::of(user_id).index()),
            None => self.settled.get(source),
        };
        known.copied().unwrap_or(Timestamp::MIN)
    }

    /// Goes on to the marks of the shards that own the buckets of a service.
    pub fn follow(
        &mut self,
        service: &'static str,
        marks: &Watermarks,
        owner: impl Fn(Bucket) -> Option<usize>,
    ) {
        let known = self.by_bucket.entry(service).or_insert_with(|| vec![Timestamp::MIN; BUCKETS]);
        for bucket in Bucket::all() {
            let mark = owner(bucket).and_then(|shard| marks.of(service, shard));
            known[bucket.index()] = known[bucket.index()].max(mark.unwrap_or(Timestamp::MIN));
        }
    }

    /// Up to when the user's payments were looked for.
    pub fn looked_until(&self, user_id: Uuid) -> Timestamp {
        self.looked[Bucket::of(user_id).index()]
    }

    /// Up to when all payments were looked for.
    pub fn looked_at_all_until(&self) -> Timestamp {
        self.looked.iter().min().copied().unwrap_or(Timestamp::MIN)
    }

    /// Up to when any payments were looked for.
    pub fn looked_at_any_until(&self) -> Timestamp {
        self.looked.iter().max().copied().unwrap_or(Timestamp::MIN)
    }

    /// The range of the next look at the payments of these buckets, which are on one shard; nothing if there is none.
    pub fn next_look(&self, buckets: &[Bucket], most: Duration) -> Result<Option<(Timestamp, Timestamp)>> {
        let marks = buckets.iter().map(|bucket| self.looked[bucket.index()]);
        let Some(from) = marks.min() else { return Ok(None) };
        let settled = buckets.iter().map(|bucket| self.settled_of_payments(*bucket)).min();
        let to = from.saturating_add(most).context("the time of the look")?;
        let to = to.min(settled.unwrap_or(Timestamp::MIN));
        Ok((from < to).then_some((from, to)))
    }

    fn settled_of_payments(&self, bucket: Bucket) -> Timestamp {
        let known = match self.by_bucket.get("payments") {
            Some(marks) => marks.get(bucket.index()),
            None => self.settled.get("payments"),
        };
        known.copied().unwrap_or(Timestamp::MIN)
    }

    /// The payments of these buckets were looked for up to this time.
    pub fn look(&mut self, buckets: &[Bucket], until: Timestamp) {
        for bucket in buckets {
            let known = &mut self.looked[bucket.index()];
            *known = until.max(*known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(10);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn position(second: i64, wal: u64, confirmed: u64) -> Position {
        Position { at: at(second), wal, confirmed: Some(confirmed) }
    }

    fn user() -> (Uuid, Bucket) {
        (Uuid::from_u128(1), Bucket::of(Uuid::from_u128(1)))
    }

    #[test]
    fn a_shard_is_settled_once_its_relay_has_emitted_what_it_had_written_and_the_topics_are_read() {
        let mut marks = Watermarks::default();
        marks.observe("payments", &[position(100, 50, 10), position(100, 7, 7)]);
        marks.read(SETTLE).unwrap();
        assert_eq!((marks.of("payments", 0), marks.of("payments", 1)), (None, None));
        marks.observe("payments", &[position(160, 90, 49), position(160, 7, 7)]);
        assert_eq!(marks.of("payments", 1), None, "the topics are not read yet");
        marks.read(SETTLE).unwrap();
        assert_eq!((marks.of("payments", 0), marks.of("payments", 1)), (None, Some(at(90))));
        marks.observe(
            "payments",
            &[position(220, 95, 50), Position { confirmed: None, ..position(220, 8, 0) }],
        );
        marks.read(SETTLE).unwrap();
        assert_eq!((marks.of("payments", 0), marks.of("payments", 1)), (Some(at(90)), Some(at(90))));
    }

    #[test]
    fn a_user_has_the_mark_of_the_shard_that_owns_the_bucket_and_never_an_older_one() {
        let (user, _) = user();
        let mut progress = Progress::begin(at(1));
        progress.settled.insert("payments".to_owned(), at(500));
        assert_eq!(progress.of("payments", user), at(500), "one database");
        let mut marks = Watermarks::default();
        for (second, wal) in [(100, 1), (200, 2)] {
            marks.observe("payments", &[position(second, wal, wal), position(second + 50, wal, wal)]);
        }
        marks.read(SETTLE).unwrap();
        for (owner, expected) in [(None, Timestamp::MIN), (Some(1), at(140)), (Some(0), at(140))] {
            progress.follow("payments", &marks, |_| owner);
            assert_eq!(progress.of("payments", user), expected, "{owner:?}");
        }
        assert_eq!(progress.of("balance", user), Timestamp::MIN);
    }

    #[test]
    fn the_look_goes_on_from_where_each_bucket_is() {
        let (user, bucket) = user();
        let all: Vec<Bucket> = Bucket::all().collect();
        let mut progress = Progress::begin(at(100));
        assert_eq!(progress.next_look(&all, SETTLE).unwrap(), None, "nothing is settled");
        progress.settled.insert("payments".to_owned(), at(105));
        assert_eq!(progress.next_look(&all, SETTLE).unwrap(), Some((at(100), at(105))));
        progress.settled.insert("payments".to_owned(), at(200));
        assert_eq!(progress.next_look(&all, SETTLE).unwrap(), Some((at(100), at(110))));
        progress.look(&[bucket], at(110));
        assert_eq!((progress.looked_until(user), progress.looked_at_any_until()), (at(110), at(110)));
        assert_eq!(progress.looked_at_all_until(), at(100));
        assert_eq!(progress.next_look(&[bucket], SETTLE).unwrap(), Some((at(110), at(120))));
        assert_eq!(progress.next_look(&[], SETTLE).unwrap(), None);
    }
}
