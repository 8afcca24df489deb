//! Confirms positions to Postgres, and notices a connection that is dead.
//!
//! * Confirmations are limited to one per `STATUS_INTERVAL_MIN`; one is sent at least every `STATUS_INTERVAL_MAX`.
//! * A server that sends nothing is asked for a reply, and given up after `SERVER_TIMEOUT`. While the stream does not read,
//!   nothing is known of the server.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::failpoints::{Failpoint, hit};
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::Replication;

const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(1);
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

pub struct SlotConfirmation {
    confirmed: Lsn,
    confirmed_at: Instant,
    /// The server asked for a reply.
    reply_requested: bool,
    last_received_at: Instant,
}

impl SlotConfirmation {
    pub fn new(now: Instant) -> SlotConfirmation {
        SlotConfirmation {
            confirmed: Lsn::ZERO,
            confirmed_at: now,
            reply_requested: true,
            last_received_at: now,
        }
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
        if since < STATUS_INTERVAL_MIN || (!is_news && since < STATUS_INTERVAL_MAX) {
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
