//! The charges the sweeper keeps an eye on, and down to which age it must still look for others.
//!
//! Every charge older than the low-water mark has ended or is watched; so a scan reads only what is younger.
//! The number watched is bounded: when there is no room, the mark stays where the first one was that did not fit.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;

use crate::store::sweep::Live;

/// A row becomes visible later than its `created_at` says, by the length of its transaction. None of ours can
/// last this long: they are a few statements of at most 15 seconds.
const SLACK: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Watch(Arc<Mutex<Inner>>);

struct Inner {
    room: usize,
    due: HashMap<Uuid, Instant>,
    order: BTreeSet<(Instant, Uuid)>,
    low: Timestamp,
}

impl Watch {
    /// Watches at most `room` charges.
    pub fn new(room: usize) -> Watch {
        let (due, order) = (HashMap::new(), BTreeSet::new());
        Watch(Arc::new(Mutex::new(Inner { room, due, order, low: Timestamp::UNIX_EPOCH })))
    }

    /// Look at this charge after `wait`. Without room a new one is left to the next scan, which finds it since
    /// the mark has not passed it.
    pub fn set(&self, payment_id: Uuid, wait: Duration) {
        self.inner().set(payment_id, Instant::now() + wait);
    }

    /// This charge has ended.
    pub fn forget(&self, payment_id: Uuid) {
        self.inner().remove(payment_id);
    }

    pub fn len(&self) -> usize {
        self.inner().due.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From which `created_at` on the next scan must read.
    pub fn low_water(&self) -> Timestamp {
        self.inner().low
    }

    /// Takes a scan in: `live`, oldest first, is everything that had not ended at `read_at` from the low-water
    /// mark on, or the oldest part of it (`all` is false).
    pub fn scanned(&self, live: &[Live], all: bool, read_at: Timestamp) {
        let mut inner = self.inner();
        let now = Instant::now();
        for charge in live {
            // The time of those that are watched already is known better.
            if !inner.due.contains_key(&charge.payment_id) && !inner.set(charge.payment_id, now) {
                inner.raise(charge.created_at);
                return;
            }
        }
        match live.last() {
            Some(last) if !all => inner.raise(last.created_at),
            Some(_) | None => {
                if let Ok(settled) = read_at.checked_sub(SLACK) {
                    inner.raise(settled);
                }
            }
        }
    }

    /// Up to `most` charges that are due. They stay watched; they are due again after `again` unless set anew.
    pub fn take_due(&self, most: usize, again: Duration) -> Vec<Uuid> {
        let mut inner = self.inner();
        let now = Instant::now();
        let due: Vec<Uuid> =
            inner.order.iter().take_while(|(at, _)| *at <= now).take(most).map(|(_, id)| *id).collect();
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
    fn set(&mut self, payment_id: Uuid, at: Instant) -> bool {
        if !self.due.contains_key(&payment_id) && self.due.len() >= self.room {
            return false;
        }
        if let Some(before) = self.due.insert(payment_id, at) {
            self.order.remove(&(before, payment_id));
        }
        self.order.insert((at, payment_id));
        true
    }

    fn remove(&mut self, payment_id: Uuid) {
        if let Some(at) = self.due.remove(&payment_id) {
            self.order.remove(&(at, payment_id));
        }
    }

    fn raise(&mut self, low: Timestamp) {
        self.low = self.low.max(low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn live(seconds: impl IntoIterator<Item = i64>) -> Vec<Live> {
        let row = |s: i64| Live { payment_id: Uuid::from_u128(s as u128), created_at: at(s) };
        seconds.into_iter().map(row).collect()
    }

    const AGAIN: Duration = Duration::from_secs(60);

    #[test]
    fn after_a_whole_scan_the_mark_is_the_slack_behind() {
        let watch = Watch::new(10);
        watch.scanned(&live([1, 2, 3]), true, at(500));
        assert_eq!((watch.low_water(), watch.len()), (at(440), 3));
        watch.scanned(&[], true, at(300));
        assert_eq!(watch.low_water(), at(440), "it never goes back");
    }

    #[test]
    fn the_mark_stays_at_the_first_that_was_not_read_or_did_not_fit() {
        let watch = Watch::new(10);
        watch.scanned(&live([1, 2, 3]), false, at(500));
        assert_eq!(watch.low_water(), at(3));
        let watch = Watch::new(2);
        watch.scanned(&live([1, 2, 3, 4]), true, at(500));
        assert_eq!((watch.low_water(), watch.len()), (at(3), 2));
        // Room again: the next scan from the mark on finds the others.
        watch.forget(Uuid::from_u128(1));
        watch.scanned(&live([3, 4]), true, at(500));
        assert_eq!((watch.low_water(), watch.len()), (at(4), 2));
    }

    #[test]
    fn what_is_due_comes_once_and_in_order() {
        let watch = Watch::new(10);
        watch.scanned(&live([1, 2]), true, at(500));
        watch.set(Uuid::from_u128(3), Duration::from_secs(60));
        assert_eq!(watch.take_due(1, AGAIN), [Uuid::from_u128(1)]);
        assert_eq!(watch.take_due(9, AGAIN), [Uuid::from_u128(2)]);
        assert!(watch.take_due(9, AGAIN).is_empty());
        watch.set(Uuid::from_u128(3), Duration::ZERO);
        watch.scanned(&live([1]), true, at(500));
        assert_eq!(watch.take_due(9, AGAIN), [Uuid::from_u128(3)], "a scan does not hurry what is watched");
        watch.forget(Uuid::from_u128(1));
        assert_eq!(watch.len(), 2);
    }

    #[test]
    fn a_full_watch_refuses_new_ones_but_keeps_its_own() {
        let watch = Watch::new(1);
        watch.set(Uuid::from_u128(1), AGAIN);
        watch.set(Uuid::from_u128(2), Duration::ZERO);
        assert!(watch.take_due(9, AGAIN).is_empty());
        watch.set(Uuid::from_u128(1), Duration::ZERO);
        assert_eq!(watch.take_due(9, AGAIN), [Uuid::from_u128(1)]);
    }
}
