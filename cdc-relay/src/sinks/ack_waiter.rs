//! Bounds the bytes in flight of rows that are emitted beside the stream, and waits for their acknowledgements.
//!
//! * Unreachable sinks are waited for; the waiter notifies its caller after a few seconds.
//! * A Kafka that answers and takes nothing is given up ([`stall`](crate::sinks::stall)).
//! * With a time-out, sinks that acknowledge nothing for that long are given up too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::checkpoint::progress::{Progress, Sink};
use crate::postgres::lsn::Lsn;
use crate::sinks::acks::{Ack, Acks};
use crate::sinks::kafka::Kafka;
use crate::sinks::stall::{Stall, Verdict};

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The caller is notified after so long without an acknowledgement.
const SILENCE_NOTICE_MIN: Duration = Duration::from_secs(3);

pub struct AckWaiter {
    acks: Arc<Acks>,
    pub progress: Progress,
    buffer: Vec<Ack>,
    stall: Stall,
    last_ack_at: Instant,
    in_flight_bytes_max: i64,
    timeout: Option<Duration>,
}

impl AckWaiter {
    /// `timeout`: how long the sinks may acknowledge nothing; without it, for ever.
    pub fn new(acks: &Arc<Acks>, in_flight_bytes_max: i64, timeout: Option<Duration>) -> AckWaiter {
        let now = Instant::now();
        AckWaiter {
            acks: Arc::clone(acks),
            progress: Progress::new(0, Lsn::ZERO, Lsn::ZERO),
            buffer: Vec::new(),
            stall: Stall::new(now, 0),
            last_ack_at: now,
            in_flight_bytes_max,
            timeout,
        }
    }

    /// Once a sink has the maximum in flight, waits until it has half of it.
    ///
    /// # Errors
    /// When a sink fails, or acknowledges nothing for too long.
    pub fn make_room(&mut self, kafka: &Kafka, notify: &mut dyn FnMut(&str)) -> Result<()> {
        if self.bytes() < self.in_flight_bytes_max {
            return Ok(());
        }
        self.wait_for(self.in_flight_bytes_max / 2, kafka, notify)
    }

    /// Waits until everything is acknowledged.
    ///
    /// # Errors
    /// As [`make_room`](Self::make_room).
    pub fn finish(&mut self, kafka: &Kafka, notify: &mut dyn FnMut(&str)) -> Result<()> {
        self.wait_for(0, kafka, notify)
    }

    /// Takes the acknowledgements so far.
    ///
    /// # Errors
    /// When a sink has failed.
    pub fn collect(&mut self) -> Result<()> {
        if let Some(reason) = self.acks.failure() {
            bail!("{reason}");
        }
        self.acks.take(&mut self.buffer);
        for ack in self.buffer.drain(..) {
            self.last_ack_at = self.last_ack_at.max(ack.at);
            if ack.sink == Sink::Kafka {
                self.stall.acknowledged(ack.at);
            }
            self.progress.acknowledge(ack.transaction_seq, ack.sink, ack.count);
        }
        Ok(())
    }

    fn bytes(&self) -> i64 {
        self.acks.bytes(Sink::Kafka).max(self.acks.bytes(Sink::Rabbit))
    }

    fn wait_for(&mut self, bytes_max: i64, kafka: &Kafka, notify: &mut dyn FnMut(&str)) -> Result<()> {
        let mut notified = false;
        // The caller read rows until now, so the silence begins here.
        self.last_ack_at = Instant::now();
        self.stall.acknowledged(self.last_ack_at);
        let acks = Arc::clone(&self.acks);
        acks.wait_until(bytes_max, POLL_INTERVAL, || {
            self.collect()?;
            if self.bytes() <= bytes_max && (bytes_max > 0 || self.progress.is_acknowledged()) {
                return Ok(true);
            }
            self.check_stall(kafka, notify)?;
            let silence = self.last_ack_at.elapsed();
            if silence > SILENCE_NOTICE_MIN && !notified {
                notify("no acknowledgement arrives: waiting for Kafka or RabbitMQ");
            }
            notified = silence > SILENCE_NOTICE_MIN;
            let in_time = self.timeout.is_none_or(|timeout| silence < timeout);
            ensure!(in_time, "the sinks acknowledged nothing for {} s", silence.as_secs());
            Ok(false)
        })
    }

    /// Fails if Kafka answers but takes nothing from our client.
    fn check_stall(&mut self, kafka: &Kafka, notify: &mut dyn FnMut(&str)) -> Result<()> {
        let now = Instant::now();
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.stall.acknowledged(now);
        }
        match self.stall.judge(now, kafka.last_answer_at()) {
            Verdict::Fine => {}
            Verdict::Probe => {
                notify("Kafka acknowledges nothing: asking it whether it answers");
                kafka.probe();
            }
            Verdict::GiveUp => {
                bail!("Kafka answers, but took nothing for {} s", self.stall.lasted(now).as_secs())
            }
        }
        Ok(())
    }
}
