//! Tracks what the sinks of a session have in flight, and what they have acknowledged.
//!
//! * A failure of a sink ends the session.
//! * A Kafka that answers and takes nothing is a failure too (`stall`), so that the next session makes new clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::checkpoint::progress::{Progress, Sink};
use crate::failpoints::{Failpoint, hit};
use crate::observe::metrics::SourceMetrics;
use crate::postgres::lsn::PgTime;
use crate::sinks::acks::{Ack, Acks};
use crate::sinks::kafka::Kafka;
use crate::sinks::stall::{Stall, Verdict};

pub struct AckTracker {
    acks: Arc<Acks>,
    pub progress: Progress,
    buffer: Vec<Ack>,
    stall: Stall,
    /// Sessions in a row that ended because Kafka answered and took nothing.
    stalls: u32,
    in_flight_bytes_max: i64,
}

impl AckTracker {
    pub fn new(acks: &Arc<Acks>, progress: Progress, in_flight_bytes_max: i64, stalls: u32) -> AckTracker {
        AckTracker {
            acks: Arc::clone(acks),
            progress,
            buffer: Vec::new(),
            stall: Stall::new(Instant::now(), stalls),
            stalls,
            in_flight_bytes_max,
        }
    }

    /// The acknowledgements as the sinks report them.
    pub fn shared(&self) -> Arc<Acks> {
        Arc::clone(&self.acks)
    }

    pub fn stopping(&self) -> bool {
        self.acks.stopping()
    }

    pub fn failure(&self) -> Option<String> {
        self.acks.failure()
    }

    pub fn stalls(&self) -> u32 {
        self.stalls
    }

    /// Takes the acknowledgements so far.
    ///
    /// # Errors
    /// A sink failed.
    pub fn collect(&mut self, metrics: &SourceMetrics) -> Result<()> {
        if let Some(reason) = self.acks.failure() {
            bail!("{reason}");
        }
        self.acks.take(&mut self.buffer);
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (now, time) = (Instant::now(), PgTime::now());
        let seconds = time.unix_seconds();
        for ack in self.buffer.drain(..) {
            metrics.sinks.acknowledged_at[ack.sink as usize].set(seconds);
            if ack.sink == Sink::Kafka {
                self.stall.acknowledged(ack.at);
                self.stalls = 0;
            }
            if let Some(whole) = self.progress.acknowledge(ack.transaction_seq, ack.sink, ack.count) {
                hit(match whole.sink {
                    Sink::Kafka => Failpoint::AfterKafka,
                    Sink::Rabbit => Failpoint::AfterRabbit,
                });
                let ago = now.saturating_duration_since(ack.at).as_micros() as i64;
                let latency = time.0 - whole.committed_at.0 - ago;
                metrics.sinks.latency[whole.sink as usize].observe(latency.max(0) as f64 / 1e6);
            }
        }
        Ok(())
    }

    /// Returns a sink that has the maximum in flight.
    pub fn full_sink(&self) -> Option<Sink> {
        let is_full = |sink: &Sink| self.acks.bytes(*sink) >= self.in_flight_bytes_max;
        [Sink::Kafka, Sink::Rabbit].into_iter().find(is_full)
    }

    /// A full sink is used again when it has only this much in flight.
    pub fn resume_bytes(&self) -> i64 {
        self.in_flight_bytes_max / 2
    }

    /// Sleeps until a full sink has half of its maximum, at most for `timeout`.
    pub fn sleep_while_full(&self, timeout: Duration) -> Result<()> {
        self.acks.sleep_while(self.resume_bytes(), timeout, || self.full_sink().is_some())
    }

    /// Fails the sinks if Kafka answers but takes nothing from this client. `is_saving`: a checkpoint is in flight, which
    /// the bytes in flight do not include.
    pub fn check_stall(&mut self, kafka: &Kafka, is_saving: bool) {
        let now = Instant::now();
        if !is_saving && self.acks.bytes(Sink::Kafka) == 0 {
            self.stall.acknowledged(now);
        }
        match self.stall.judge(now, kafka.last_answer_at()) {
            Verdict::Fine => {}
            Verdict::Probe => kafka.probe(),
            Verdict::GiveUp => {
                self.stalls += 1;
                let lasted = self.stall.lasted(now).as_secs();
                self.acks.fail(format!(
                    "Kafka answers, but took nothing for {lasted} s; a new session connects again"
                ));
            }
        }
    }

    /// Sets the metrics of what is in flight.
    pub fn report(&self, metrics: &SourceMetrics) {
        for sink in [Sink::Kafka, Sink::Rabbit] {
            metrics.sinks.in_flight[sink as usize].set(self.acks.bytes(sink));
        }
        metrics.sinks.pending.set(self.progress.pending() as i64);
        metrics.sinks.oldest_pending.set(self.progress.oldest().map_or(f64::NAN, PgTime::unix_seconds));
    }
}
