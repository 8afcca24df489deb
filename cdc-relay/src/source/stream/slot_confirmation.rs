//! Confirms positions to Postgres, and notices a connection that is dead.
//!
//! * Confirmations are limited to one per `STATUS_INTERVAL_MIN`; one is sent at least every `STATUS_INTERVAL_MAX`.
//! * A server that sends nothing is asked for a reply, and given up after `SERVER_TIMEOUT`. While the stream does not read,
//!   nothing is known of the server.
//! * A logical message with the prefix [`PREFIX`] has the checkpoint saved and the slot confirmed up to its transaction without these
//!   limits: whoever wrote it waits, and has stopped others meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::failpoints::{Failpoint, hit};
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::Replication;

/// The prefix of logical messages whose transaction is to be confirmed soon.
pub const PREFIX: &str = "cdc-relay.confirm";
/// How often the loop looks whether such a transaction can be confirmed.
const ASKED_INTERVAL: Duration = Duration::from_millis(2);
/// Nobody waits for longer: where Kafka or RabbitMQ do not answer, the usual limits are good enough.
const ASKED_TIMEOUT: Duration = Duration::from_secs(1);

const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(1);
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

pub struct SlotConfirmation {
    confirmed: Lsn,
    confirmed_at: Instant,
    /// The server asked for a reply.
    reply_requested: bool,
    last_received_at: Instant,
    /// The open transaction asks to be confirmed soon.
    asks: bool,
    /// The end of the last transaction that asked, and when it was read.
    asked: Option<(Lsn, Instant)>,
}

impl SlotConfirmation {
    pub fn new(now: Instant) -> SlotConfirmation {
        SlotConfirmation {
            confirmed: Lsn::ZERO,
            confirmed_at: now,
            reply_requested: true,
            last_received_at: now,
            asks: false,
            asked: None,
        }
    }

    /// The open transaction is to be confirmed soon.
    pub fn ask(&mut self) {
        self.asks = true;
    }

    /// A transaction has ended here.
    pub fn committed(&mut self, end_lsn: Lsn) {
        if std::mem::take(&mut self.asks) {
            self.asked = Some((end_lsn, Instant::now()));
        }
    }

    /// The position that somebody waits for.
    fn awaited(&self) -> Option<Lsn> {
        let (lsn, at) = self.asked?;
        (self.confirmed < lsn && at.elapsed() < ASKED_TIMEOUT).then_some(lsn)
    }

    /// Whether somebody waits for the checkpoint to be saved, where all sinks have acknowledged up to `acknowledged`.
    pub fn awaits_checkpoint(&self, acknowledged: Lsn) -> bool {
        self.awaited().is_some_and(|lsn| lsn <= acknowledged)
    }

    /// The longest that the loop may wait: shorter while somebody waits for it.
    pub fn limit(&self, timer: Duration) -> Duration {
        if self.awaited().is_some() { timer.min(ASKED_INTERVAL) } else { timer }
    }

    /// The server sent something, or the stream did not read from it until now.
    pub fn received(&mut self, now: Instant) {
        self.last_received_at = now;
    }

    pub fn request_reply(&mut self) {
        self.reply_requested = true;
    }

    /// Confirms the position if it is time. Returns whether it did. `is_reading`: the stream reads from the server.
    ///
    /// # Errors
    /// The server was silent for too long, or the connection failed.
    pub fn confirm(
        &mut self,
        replication: &mut Replication,
        confirmable: Lsn,
        is_reading: bool,
    ) -> Result<bool> {
        let (since, before) = (self.confirmed_at.elapsed(), self.confirmed);
        let is_news = confirmable > before || self.reply_requested;
        let is_awaited = self.awaits_checkpoint(confirmable);
        if !is_awaited && (since < STATUS_INTERVAL_MIN || (!is_news && since < STATUS_INTERVAL_MAX)) {
            return Ok(false);
        }
        let silence = self.last_received_at.elapsed();
        ensure!(
            !is_reading || silence <= SERVER_TIMEOUT,
            "Postgres sent nothing for {} s, although asked; a new session connects again",
            silence.as_secs()
        );
        self.confirmed = before.max(confirmable);
        replication.confirm(confirmable, is_reading && silence > SERVER_TIMEOUT / 6)?;
        if self.confirmed > before {
            hit(Failpoint::AfterConfirm);
        }
        self.confirmed_at = Instant::now();
        self.reply_requested = false;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_transaction_that_asks_is_waited_for_and_only_until_it_is_confirmed() {
        let timer = Duration::from_millis(50);
        let mut slot = SlotConfirmation::new(Instant::now());
        slot.committed(Lsn(10));
        assert_eq!((slot.awaits_checkpoint(Lsn(10)), slot.limit(timer)), (false, timer));
        slot.ask();
        assert!(!slot.awaits_checkpoint(Lsn(10)), "it has not ended yet");
        slot.committed(Lsn(20));
        slot.committed(Lsn(30));
        assert!(!slot.awaits_checkpoint(Lsn(19)), "the sinks have not acknowledged it");
        assert!(slot.awaits_checkpoint(Lsn(20)) && slot.limit(timer) < timer);
        slot.confirmed = Lsn(20);
        assert_eq!((slot.awaits_checkpoint(Lsn(30)), slot.limit(timer)), (false, timer));
    }

    #[test]
    fn nobody_is_waited_for_for_long() {
        let mut slot = SlotConfirmation::new(Instant::now());
        slot.asked = Instant::now().checked_sub(ASKED_TIMEOUT).map(|at| (Lsn(20), at));
        assert!(slot.asked.is_some() && !slot.awaits_checkpoint(Lsn(20)));
    }
}
