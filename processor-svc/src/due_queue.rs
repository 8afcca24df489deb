//! Queues charges by the time when they are due, and keeps the age from which the next scan must read.
//!
//! * A scan reads by age, from the low-water mark on. An older charge is terminal, is in the queue, or appeared later with
//!   that age: after a restore, a clock that was set back, or a long transaction. A walk through the whole table, a few
//!   blocks at a time, finds the latter.
//! * The queue is bounded. When it is full, the mark stays at the first charge that did not fit.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;

use crate::store::sweep::LiveCharge;

/// A row becomes visible later than its `created_at` by the length of its transaction. Ours have a few statements of at
/// most 15 seconds; the walk finds rows of longer ones.
const VISIBILITY_DELAY_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct DueQueue(Arc<Mutex<Inner>>);

struct Inner {
    room: usize,
    entries: HashMap<Uuid, QueueEntry>,
    order: BTreeSet<(Instant, Uuid)>,
    /// The entries whose age is known, oldest first.
    ages: BTreeSet<(Timestamp, Uuid)>,
    low: Timestamp,
    /// The database's clock at the last scan.
    read_at: Timestamp,
}

struct QueueEntry {
    due: Instant,
    /// Known once a scan or a walk has read the row.
    created_at: Option<Timestamp>,
}

impl DueQueue {
    /// A queue of at most `room` charges.
    pub fn new(room: usize) -> DueQueue {
        DueQueue(Arc::new(Mutex::new(Inner {
            room,
            entries: HashMap::new(),
            order: BTreeSet::new(),
            ages: BTreeSet::new(),
            low: Timestamp::UNIX_EPOCH,
            read_at: Timestamp::UNIX_EPOCH,
        })))
    }

    /// Makes this charge due after `wait`. A full queue leaves a new charge to the next scan, which finds it since the
    /// mark has not passed it.
    pub fn set(&self, payment_id: Uuid, wait: Duration) {
        self.inner().set(payment_id, Instant::now() + wait);
    }

    /// Removes a charge, which has ended.
    pub fn remove(&self, payment_id: Uuid) {
        self.inner().remove(payment_id);
    }

    pub fn len(&self) -> usize {
        self.inner().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `created_at` from which the next scan must read.
    pub fn low_water(&self) -> Timestamp {
        self.inner().low
    }

    /// Makes the next scan read everything, since the database is another one than before.
    pub fn start_over(&self) {
        self.inner().low = Timestamp::UNIX_EPOCH;
    }

    /// Takes in a scan: `live`, oldest first, is everything that was not terminal at `read_at` from the low-water mark
    /// on, or the oldest part of it (`all` is false).
    pub fn scanned(&self, live: &[LiveCharge], all: bool, read_at: Timestamp) {
        let mut inner = self.inner();
        // The clock went back, as after a failover: new rows are older by it than the rows before.
        if read_at < inner.read_at {
            inner.low = inner.low.min(slack_before(read_at));
        }
        inner.read_at = read_at;
        if let Some(first) = inner.add_all(live) {
            return inner.raise(first);
        }
        match live.last() {
            Some(last) if !all => inner.raise(last.created_at),
            Some(_) | None => inner.raise(slack_before(read_at)),
        }
    }

    /// Takes in the charges of a walk. A later walk finds those that do not fit.
    pub fn add_walked(&self, live: &[LiveCharge]) {
        self.inner().add_all(live);
    }

    /// Up to `max` charges of the queue, oldest first.
    pub fn oldest(&self, max: usize) -> Vec<Uuid> {
        self.inner().ages.iter().take(max).map(|(_, id)| *id).collect()
    }

    /// Up to `max` charges that are due. They stay in the queue, due again after `again` unless set anew.
    pub fn take_due(&self, max: usize, again: Duration) -> Vec<Uuid> {
        let mut inner = self.inner();
        let now = Instant::now();
        let due: Vec<Uuid> =
            inner.order.iter().take_while(|(at, _)| *at <= now).take(max).map(|(_, id)| *id).collect();
        for id in &due {
            inner.set(*id, now + again);
        }
        due
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Adds charges that are not in the queue, due now; returns the age of the first that did not fit.
    fn add_all(&mut self, live: &[LiveCharge]) -> Option<Timestamp> {
        let now = Instant::now();
        for LiveCharge { payment_id, created_at } in live {
            // The due time of charges in the queue is known better.
            if !self.entries.contains_key(payment_id) && !self.set(*payment_id, now) {
                return Some(*created_at);
            }
            self.set_age(*payment_id, *created_at);
        }
        None
    }

    fn set(&mut self, payment_id: Uuid, at: Instant) -> bool {
        if let Some(entry) = self.entries.get_mut(&payment_id) {
            let before = std::mem::replace(&mut entry.due, at);
            self.order.remove(&(before, payment_id));
        } else if self.entries.len() < self.room {
            self.entries.insert(payment_id, QueueEntry { due: at, created_at: None });
        } else {
            return false;
        }
        self.order.insert((at, payment_id));
        true
    }

    fn set_age(&mut self, payment_id: Uuid, created_at: Timestamp) {
        let Some(entry) = self.entries.get_mut(&payment_id) else { return };
        if let Some(before) = entry.created_at.replace(created_at) {
            self.ages.remove(&(before, payment_id));
        }
        self.ages.insert((created_at, payment_id));
    }

    fn remove(&mut self, payment_id: Uuid) {
        if let Some(QueueEntry { due, created_at }) = self.entries.remove(&payment_id) {
            self.order.remove(&(due, payment_id));
            if let Some(created_at) = created_at {
                self.ages.remove(&(created_at, payment_id));
            }
        }
    }

    fn raise(&mut self, low: Timestamp) {
        self.low = self.low.max(low);
    }
}

fn slack_before(read_at: Timestamp) -> Timestamp {
    read_at.checked_sub(VISIBILITY_DELAY_MAX).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn live(seconds: impl IntoIterator<Item = i64>) -> Vec<LiveCharge> {
        let row = |s: i64| LiveCharge { payment_id: Uuid::from_u128(s as u128), created_at: at(s) };
        seconds.into_iter().map(row).collect()
    }

    const AGAIN: Duration = Duration::from_secs(60);

    #[test]
    fn after_a_whole_scan_the_mark_is_the_slack_behind() {
        let due_queue = DueQueue::new(10);
        due_queue.scanned(&live([1, 2, 3]), true, at(500));
        assert_eq!((due_queue.low_water(), due_queue.len()), (at(440), 3));
        due_queue.scanned(&[], true, at(500));
        assert_eq!(due_queue.low_water(), at(440));
    }

    #[test]
    fn the_mark_follows_a_clock_that_went_back_and_another_database_begins_anew() {
        let due_queue = DueQueue::new(10);
        due_queue.scanned(&live([1]), true, at(500));
        // The standby that took over is ten minutes behind: what it makes now is older than the mark.
        due_queue.scanned(&[], true, at(-100));
        assert_eq!(due_queue.low_water(), at(-160));
        due_queue.scanned(&live([-90]), true, at(-80));
        assert_eq!((due_queue.low_water(), due_queue.len()), (at(-140), 2));
        due_queue.start_over();
        assert_eq!(due_queue.low_water(), Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn the_oldest_are_those_that_are_still_queued() {
        let due_queue = DueQueue::new(3);
        let id = |n: u128| Uuid::from_u128(n);
        due_queue.set(id(9), AGAIN);
        due_queue.scanned(&live([5, 7]), true, at(500));
        due_queue.add_walked(&live([2]));
        assert_eq!(due_queue.oldest(9), [id(5), id(7)], "no room, and of one the age is not known");
        due_queue.remove(id(5));
        due_queue.add_walked(&live([2]));
        assert_eq!(due_queue.oldest(1), [id(2)]);
        due_queue.add_walked(&[LiveCharge { payment_id: id(9), created_at: at(1) }]);
        assert_eq!(due_queue.oldest(9), [id(9), id(2), id(7)]);
        assert_eq!(due_queue.low_water(), at(440), "a walk says nothing about the mark");
    }

    #[test]
    fn the_mark_stays_at_the_first_that_was_not_read_or_did_not_fit() {
        let due_queue = DueQueue::new(10);
        due_queue.scanned(&live([1, 2, 3]), false, at(500));
        assert_eq!(due_queue.low_water(), at(3));
        let due_queue = DueQueue::new(2);
        due_queue.scanned(&live([1, 2, 3, 4]), true, at(500));
        assert_eq!((due_queue.low_water(), due_queue.len()), (at(3), 2));
        // Room again: the next scan from the mark on finds the others.
        due_queue.remove(Uuid::from_u128(1));
        due_queue.scanned(&live([3, 4]), true, at(500));
        assert_eq!((due_queue.low_water(), due_queue.len()), (at(4), 2));
    }

    #[test]
    fn what_is_due_comes_once_and_in_order() {
        let due_queue = DueQueue::new(10);
        due_queue.scanned(&live([1, 2]), true, at(500));
        due_queue.set(Uuid::from_u128(3), Duration::from_secs(60));
        assert_eq!(due_queue.take_due(1, AGAIN), [Uuid::from_u128(1)]);
        assert_eq!(due_queue.take_due(9, AGAIN), [Uuid::from_u128(2)]);
        assert!(due_queue.take_due(9, AGAIN).is_empty());
        due_queue.set(Uuid::from_u128(3), Duration::ZERO);
        due_queue.scanned(&live([1]), true, at(500));
        assert_eq!(
            due_queue.take_due(9, AGAIN),
            [Uuid::from_u128(3)],
            "a scan does not hurry what is queued"
        );
        due_queue.remove(Uuid::from_u128(1));
        assert_eq!(due_queue.len(), 2);
    }

    #[test]
    fn a_full_queue_refuses_new_ones_but_keeps_its_own() {
        let due_queue = DueQueue::new(1);
        due_queue.set(Uuid::from_u128(1), AGAIN);
        due_queue.set(Uuid::from_u128(2), Duration::ZERO);
        assert!(due_queue.take_due(9, AGAIN).is_empty());
        due_queue.set(Uuid::from_u128(1), Duration::ZERO);
        assert_eq!(due_queue.take_due(9, AGAIN), [Uuid::from_u128(1)]);
    }
}
