//! Pure: the payments that are not done with, and what is known of their events.
//!
//! * A payment that an event names is examined in the next pass, and again when another event names it. One that has not ended
//!   is examined again after a while, at growing intervals.
//! * A payment that has ended stays until every source has gone on beyond its end: then each of its rows must have had its
//!   event (T1). A payment that only the look at new rows found must have had the first.
//! * Events are compared with the rows that they come from (S4, T3), and each with the one before it (S2).
//! * Of a payment from before this process, or before the look has gone on, not every event was seen here: none is missed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coroctl::audit::read::rows::Payment;
use jiff::Timestamp;
use uuid::Uuid;

use crate::checks::{Check, Found, Key, WaitsFor};
use crate::payment_events::{RowsOf, SeenEvents};
use crate::progress::Progress;

/// The longest pause between two examinations of a payment that has not ended.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// The events that the rows must have had.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    initiated_at: Timestamp,
    ended_at: Option<Timestamp>,
    versions: u32,
    phases: [bool; 2],
    /// The version of a charge that is emitted.
    result: Option<u32>,
}

impl Due {
    /// Every source that rows of the payment come from has gone on beyond this.
    fn is_before(&self, at: Timestamp, user_id: Uuid, progress: &Progress) -> bool {
        let sources = [
            ("payments", true),
            ("balance", self.phases.contains(&true)),
            ("processor", self.result.is_some()),
        ];
        sources.into_iter().all(|(source, concerned)| !concerned || progress.of(source, user_id) > at)
    }
}

/// One payment or deposit.
#[derive(Debug)]
struct Tracked {
    /// The interval in which its first event was read, see [`Pending::begin_interval`].
    interval: u64,
    tracked_at: Instant,
    /// Its events are awaited if it was accepted after this.
    after: Timestamp,
    next_examination: Option<Instant>,
    seen: SeenEvents,
    /// Of a payment that was examined.
    due: Option<Due>,
    waits_for: Option<WaitsFor>,
}

#[derive(Debug, Default)]
pub struct Pending {
    tracked: HashMap<Key, Tracked>,
    interval: u64,
    late_after: Duration,
}

impl Pending {
    pub fn new(late_after: Duration) -> Self {
        Self { late_after, ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.tracked.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracked.is_empty()
    }

    pub fn is_tracked(&self, key: Key) -> bool {
        self.tracked.contains_key(&key)
    }

    /// Tracks a payment, if it is not, and has it examined in the next pass. The caller adds what it saw to its events.
    pub fn touch(&mut self, key: Key, looked_until: Timestamp, now: Instant) -> &mut SeenEvents {
        let interval = self.interval;
        let tracked = self.tracked.entry(key).or_insert_with(|| Tracked {
            interval,
            tracked_at: now,
            after: looked_until,
            next_examination: None,
            seen: SeenEvents::default(),
            due: None,
            waits_for: None,
        });
        tracked.next_examination = Some(now);
        &mut tracked.seen
    }

    /// The payments to examine now.
    pub fn due(&self, now: Instant) -> Vec<Key> {
        let is_due = |tracked: &Tracked| tracked.next_examination.is_some_and(|next| next <= now);
        self.tracked.iter().filter(|(_, tracked)| is_due(tracked)).map(|(key, _)| *key).collect()
    }

    /// Takes the rows of a payment that was examined; returns what its events contradict.
    pub fn examined(&mut self, key: Key, rows: RowsOf<'_>, now: Instant, clock: Timestamp) -> Vec<Found> {
        let Some(tracked) = self.tracked.get_mut(&key) else { return Vec::new() };
        let ended = rows.payment.is_none_or(|payment| payment.status.has_ended());
        let age = now.saturating_duration_since(tracked.tracked_at);
        let pause = age.clamp(self.late_after, PAUSE_MAX.max(self.late_after));
        tracked.next_examination = (!ended).then(|| now + pause);
        tracked.due = rows.payment.map(|payment| due(payment, &rows));
        let accepted_at = rows.payment.map_or(clock, |payment| payment.initiated_at);
        let is_late = !ended && clock.duration_since(accepted_at).unsigned_abs() >= self.late_after;
        tracked.waits_for = is_late.then(|| WaitsFor::of(rows.charge));
        tracked.seen.contradictions(&rows)
    }

    /// Has a payment examined once more in the next pass.
    pub fn examine_again(&mut self, key: Key, now: Instant) {
        if let Some(tracked) = self.tracked.get_mut(&key) {
            tracked.next_examination = Some(now);
        }
    }

    /// Lets go of what is done with. Returns the ended or looked-up payments that lack events, which stay.
    pub fn settle(&mut self, progress: &Progress) -> Vec<(Key, Found)> {
        let mut lacking = Vec::new();
        self.tracked.retain(|key, tracked| match tracked.settle(*key, progress) {
            Settled::Done => false,
            Settled::Open => true,
            Settled::Lacks(what) => {
                lacking.push((*key, Found::new(Check::T1, what)));
                true
            }
        });
        lacking
    }

    /// Awaits no event of a payment any more: it was reported.
    pub fn await_nothing(&mut self, key: Key) {
        if let Some(tracked) = self.tracked.get_mut(&key) {
            tracked.after = Timestamp::MAX;
        }
    }

    /// Lets go of the payments that have ended and await events only; returns how many, and when the last of them was accepted.
    pub fn let_go(&mut self) -> (usize, Option<Timestamp>) {
        let before = self.tracked.len();
        let mut last = None;
        self.tracked.retain(|_, tracked| {
            let ended =
                tracked.due.filter(|due| due.ended_at.is_some() && tracked.next_examination.is_none());
            last = last.max(ended.map(|due| due.initiated_at));
            ended.is_none()
        });
        (before - self.tracked.len(), last)
    }

    /// The number of late payments by what they wait for.
    pub fn late(&self, waits_for: WaitsFor) -> usize {
        self.tracked.values().filter(|tracked| tracked.waits_for == Some(waits_for)).count()
    }

    /// Begins the next interval, and returns its number. Offsets that were next at its beginning may be committed once
    /// [`Self::holds_back`] says so.
    pub fn begin_interval(&mut self) -> u64 {
        self.interval += 1;
        self.interval
    }

    /// Whether a payment of an interval before this one is tracked, for at most `longest`.
    pub fn holds_back(&self, interval: u64, longest: Duration, now: Instant) -> bool {
        let young = |tracked: &Tracked| now.saturating_duration_since(tracked.tracked_at) < longest;
        self.tracked.values().any(|tracked| tracked.interval < interval && young(tracked))
    }
}

fn due(payment: &Payment, rows: &RowsOf<'_>) -> Due {
    Due {
        initiated_at: payment.initiated_at,
        ended_at: payment.ended_at,
        versions: payment.version,
        phases: rows.entries.map(|entry| entry.is_some()),
        result: rows.charge.filter(|charge| charge.status.is_emitted()).map(|charge| charge.version),
    }
}

enum Settled {
    Done,
    Open,
    Lacks(String),
}

impl Tracked {
    fn settle(&self, (user_id, _): Key, progress: &Progress) -> Settled {
        if self.next_examination.is_some() && self.due.is_none() {
            return Settled::Open;
        }
        // A deposit, or rows that name no payment: they were examined, and nothing more is expected of them.
        let Some(due) = self.due else { return Settled::Done };
        let was_seen_from_the_start = due.initiated_at > self.after;
        let ended = due.ended_at.is_some() && self.next_examination.is_none();
        if !was_seen_from_the_start {
            return if ended { Settled::Done } else { Settled::Open };
        }
        if progress.of("payments", user_id) <= due.initiated_at {
            return Settled::Open;
        }
        match due.ended_at.filter(|at| ended && due.is_before(*at, user_id, progress)) {
            None if !self.seen.has_payment(1) => {
                Settled::Lacks("its first version was never emitted on PaymentTopic".to_owned())
            }
            None => Settled::Open,
            Some(_) => match self.seen.missing(due.versions, due.phases, due.result) {
                Some(what) => Settled::Lacks(what),
                None if progress.looked_until(user_id) >= due.initiated_at => Settled::Done,
                None => Settled::Open,
            },
        }
    }
}

#[cfg(test)]
#[path = "pending_tests.rs"]
mod tests;
