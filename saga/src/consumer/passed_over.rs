//! Decides about the records of one partition of which some were passed over. It does no I/O.
//!
//! * A record is passed over only if it is behind the first one that was. What is before it is applied, and nobody reads it again.
//! * Of the users whose records were passed over one of 1024 slots is kept, which is their bucket: who shares it is on the same shard.
//! * The first one is tried again, and so is that of each of the last few users: another shard may be back sooner.
//! * Once the partition is read again, what was applied the first time is known, as far as the partition had been read.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

use crate::shards::bucket::Bucket;

/// Users whose first record is kept beside the first one of all.
const OTHERS_MAX: usize = 4;

/// The slot of a record by its key, which is its user.
pub(super) fn slot(key: &[u8]) -> Bucket {
    match Uuid::try_parse_ascii(key) {
        Ok(user_id) => Bucket::of(user_id),
        Err(_) => Bucket::of_bytes(key),
    }
}

/// A record that was passed over.
struct Kept<R> {
    record: R,
    offset: i64,
    slot: Bucket,
}

/// A partition of which records were passed over; `R` is a record.
pub(super) struct PassedOver<R> {
    /// The first of them. Nothing from it on is committed.
    first: Kept<R>,
    /// Of the last users who were passed over, each with the first record of its slot.
    others: VecDeque<Kept<R>>,
    slots: HashSet<Bucket>,
    /// The last record that was looked at since.
    read_to: i64,
}

impl<R> PassedOver<R> {
    pub(super) fn new(record: R, offset: i64, slot: Bucket) -> Self {
        let first = Kept { record, offset, slot };
        Self { first, others: VecDeque::new(), slots: HashSet::from([slot]), read_to: offset }
    }

    /// Passes over another record.
    pub(super) fn add(&mut self, record: R, offset: i64, slot: Bucket) {
        let is_new = self.slots.insert(slot);
        let kept = Kept { record, offset, slot };
        if offset < self.first.offset {
            self.others.retain(|other| other.slot != slot);
            let before = std::mem::replace(&mut self.first, kept);
            if before.slot != slot {
                self.keep(before);
            }
        } else if is_new {
            self.keep(kept);
        } else if let Some(other) = self.others.iter_mut().find(|other| other.slot == slot) {
            // The one that is tried is the first of its users.
            if offset < other.offset {
                *other = kept;
            }
        }
    }

    fn keep(&mut self, kept: Kept<R>) {
        if self.others.len() == OTHERS_MAX {
            self.others.pop_front();
        }
        self.others.push_back(kept);
    }

    pub(super) fn first(&self) -> &R {
        &self.first.record
    }

    /// The records to try again, the first one first.
    pub(super) fn to_try(&self) -> impl Iterator<Item = &R> {
        std::iter::once(&self.first).chain(&self.others).map(|kept| &kept.record)
    }

    /// Whether a record that is to be applied is behind one that was passed over, and perhaps of the same user.
    pub(super) fn is_behind(&mut self, offset: i64, slot: Bucket) -> bool {
        self.read_to = self.read_to.max(offset);
        offset > self.first.offset && self.slots.contains(&slot)
    }

    /// Whether a record comes again when the partition is read from the first one on.
    pub(super) fn comes_again(&self, offset: i64) -> bool {
        offset >= self.first.offset
    }

    /// The last offset that may be stored once the record at `last` is applied; `None`: none.
    pub(super) fn storable(&self, last: i64) -> Option<i64> {
        let first = self.first.offset;
        if last < first { Some(last) } else { first.checked_sub(1).filter(|offset| *offset >= 0) }
    }

    /// The partition is read again from the first one on. `dropped`: the first record that was read, comes again and was not looked
    /// at, or waited.
    pub(super) fn read_again(self, dropped: Option<i64>) -> ReadAgain {
        let until = dropped.map_or(self.read_to, |dropped| self.read_to.min(dropped - 1));
        ReadAgain { from: self.first.offset, until, slots: self.slots }
    }
}

/// A partition that is read again.
pub(super) struct ReadAgain {
    from: i64,
    /// Up to this record everything was applied or passed over.
    until: i64,
    /// The slots of whom was passed over.
    slots: HashSet<Bucket>,
}

impl ReadAgain {
    /// Whether a record was applied the first time.
    pub(super) fn was_applied(&self, offset: i64, slot: Bucket) -> bool {
        self.from < offset && offset <= self.until && !self.slots.contains(&slot)
    }

    /// Whether nothing behind this record was applied, as far as is known.
    pub(super) fn is_over(&self, offset: i64) -> bool {
        offset >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: i16 = 7;
    const WELL: i16 = 8;

    fn bucket(number: i16) -> Bucket {
        Bucket::new(number).unwrap()
    }

    /// Of a partition with the record 11 of a slot passed over.
    fn passed_over() -> PassedOver<i64> {
        PassedOver::new(11, 11, bucket(AWAY))
    }

    /// The record before it was read in the same batch, or waited for its row, and nobody reads it again.
    #[test]
    fn only_what_is_behind_the_first_is_passed_over_with_it() {
        for (offset, slot, is_behind) in
            [(10, AWAY, false), (11, AWAY, false), (12, AWAY, true), (10, WELL, false), (12, WELL, false)]
        {
            assert_eq!(passed_over().is_behind(offset, bucket(slot)), is_behind, "{offset} of slot {slot}");
        }
    }

    #[test]
    fn the_first_is_the_lowest_and_nothing_from_it_on_is_committed() {
        let mut partition = passed_over();
        partition.add(15, 15, bucket(WELL));
        assert_eq!(*partition.first(), 11);
        assert!(partition.is_behind(12, bucket(WELL)), "a user of that slot is away by now");
        partition.add(9, 9, bucket(AWAY));
        assert_eq!(*partition.first(), 9);
        for (last, storable) in [(8, Some(8)), (9, Some(8)), (20, Some(8))] {
            assert_eq!(partition.storable(last), storable, "{last} is applied");
        }
        assert_eq!(PassedOver::new((), 0, bucket(AWAY)).storable(5), None, "the very first record");
    }

    #[test]
    fn a_record_comes_again_unless_it_is_before_the_first() {
        let again: Vec<i64> = (9..14).filter(|offset| passed_over().comes_again(*offset)).collect();
        assert_eq!(again, [11, 12, 13]);
    }

    /// Each is the first of its slot: a later one would overtake those before it.
    #[test]
    fn the_first_of_all_is_tried_and_that_of_each_of_the_last_users() {
        let mut partition = passed_over();
        let tried = |partition: &PassedOver<i64>| partition.to_try().copied().collect::<Vec<_>>();
        for (offset, slot, expected) in [
            (12, AWAY, vec![11]),
            (20, 20, vec![11, 20]),
            (21, 20, vec![11, 20]),
            (15, 20, vec![11, 15]),
            (22, 22, vec![11, 15, 22]),
            (9, AWAY, vec![9, 15, 22]),
            (7, 22, vec![7, 15, 9]),
            (30, 30, vec![7, 15, 9, 30]),
            (31, 31, vec![7, 15, 9, 30, 31]),
            (32, 32, vec![7, 9, 30, 31, 32]),
        ] {
            partition.add(offset, offset, bucket(slot));
            assert_eq!(tried(&partition), expected, "{offset} of slot {slot}");
        }
    }

    /// What is before the first one may wait still, and what was dropped was not applied.
    #[test]
    fn what_was_applied_is_not_applied_again() {
        for (looked_at, dropped, applied) in [
            (14, None, vec![12, 13, 14]),
            (14, Some(13), vec![12]),
            (14, Some(12), vec![]),
            (14, Some(20), vec![12, 13, 14]),
            (11, None, vec![]),
        ] {
            let mut partition = passed_over();
            partition.is_behind(looked_at, bucket(WELL));
            let again = partition.read_again(dropped);
            let found: Vec<i64> = (5..25).filter(|offset| again.was_applied(*offset, bucket(WELL))).collect();
            assert_eq!(found, applied, "looked at {looked_at}, dropped {dropped:?}");
            assert!(!(5..25).any(|offset| again.was_applied(offset, bucket(AWAY))), "it was passed over");
            let last = applied.last().copied().unwrap_or(11);
            assert!(
                !again.is_over(last - 1) && again.is_over(last),
                "looked at {looked_at}, dropped {dropped:?}"
            );
        }
    }

    /// So nobody of another shard is passed over, however many users of a shard that is away have events.
    #[test]
    fn the_slot_of_a_user_is_the_bucket() {
        for user_id in (0..500).map(|_| Uuid::new_v4()) {
            assert_eq!(slot(user_id.to_string().as_bytes()), Bucket::of(user_id));
        }
        for key in [b"".as_slice(), b"electricity", b"\xff\xfe"] {
            assert_eq!(slot(key), Bucket::of_bytes(key));
        }
    }
}
