//! What is emitted beside the stream and not yet acknowledged: bounded, and waited for.
//!
//! Sinks that are away are waited for, with a word about it. A Kafka that answers and takes nothing is given up
//! (`stall`), and so is whoever acknowledges nothing for longer than the caller's patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::checkpoint::progress::{Progress, Sink};
use crate::postgres::lsn::Lsn;
use crate::sinks::acks::{Ack, Acks};
use crate::sinks::kafka::Kafka;
use crate::sinks::stall::{Stall, Verdict};

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A silence that is worth a word.
const SILENCE_NOTICE_MIN: Duration = Duration::from_secs(3);

pub struct AckWaiter {
    acks: Arc<Acks>,
    pub progress: Progress,
    landed: Vec<Ack>,
    stall: Stall,
    /// When something landed last.
    moved: Instant,
    most: i64,
    patience: Option<Duration>,
}

impl AckWaiter {
    /// `most`: the bytes that may be in flight. `patience`: how long the sinks may acknowledge nothing; without it, for ever.
    pub fn new(acks: &Arc<Acks>, most: i64, patience: Option<Duration>) -> AckWaiter {
        let now = Instant::now();
        AckWaiter {
            acks: Arc::clone(acks),
            progress: Progress::new(0, Lsn::ZERO, Lsn::ZERO),
            landed: Vec::new(),
            stall: Stall::new(now, 0),
            moved: now,
            most,
            patience,
        }
    }

    /// Waits, if a sink has all it may have, until it has half of it.
    pub fn make_room(&mut self, kafka: &Kafka, say: &mut dyn FnMut(&str)) -> Result<()> {
        if self.bytes() < self.most {
            return Ok(());
        }
        self.fall_to(self.most / 2, kafka, say)
    }

    /// Waits until all is acknowledged.
    pub fn land(&mut self, kafka: &Kafka, say: &mut dyn FnMut(&str)) -> Result<()> {
        self.fall_to(0, kafka, say)
    }

    /// Takes what was acknowledged.
    pub fn collect(&mut self) -> Result<()> {
        if let Some(reason) = self.acks.failure() {
            bail!("{reason}");
        }
        self.acks.take(&mut self.landed);
        for ack in self.landed.drain(..) {
            self.moved = self.moved.max(ack.at);
            if ack.sink == Sink::Kafka {
                self.stall.moved(ack.at);
            }
            self.progress.acknowledge(ack.transaction_seq, ack.sink, ack.count);
        }
        Ok(())
    }

    fn bytes(&self) -> i64 {
        self.acks.bytes(Sink::Kafka).max(self.acks.bytes(Sink::Rabbit))
    }

    fn fall_to(&mut self, most: i64, kafka: &Kafka, say: &mut dyn FnMut(&str)) -> Result<()> {
        let mut noticed = false;
        // The time before, in which the caller read, is nobody's silence.
        self.moved = Instant::now();
        self.stall.moved(self.moved);
        loop {
            self.collect()?;
            if self.bytes() <= most && (most > 0 || self.progress.is_acknowledged()) {
                return Ok(());
            }
            self.judge(kafka, say)?;
            let silence = self.moved.elapsed();
            if silence > SILENCE_NOTICE_MIN && !noticed {
                say("nothing is acknowledged: waiting for Kafka or RabbitMQ");
            }
            noticed = silence > SILENCE_NOTICE_MIN;
            let patient = self.patience.is_none_or(|patience| silence < patience);
            ensure!(patient, "the sinks acknowledged nothing for {} s", silence.as_secs());
            self.acks.wake_at(most);
            if self.bytes() > most {
                let look = Timespec { tv_sec: 0, tv_nsec: i64::from(POLL_INTERVAL.subsec_nanos()) };
                // Interrupted or not, it looks again.
                let _ = poll(&mut [PollFd::new(&*self.acks, PollFlags::IN)], Some(&look));
            }
            self.acks.no_wake();
            self.acks.drain_wake();
        }
    }

    /// Ends it if Kafka answers but takes nothing from our client.
    fn judge(&mut self, kafka: &Kafka, say: &mut dyn FnMut(&str)) -> Result<()> {
        let now = Instant::now();
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.stall.moved(now);
        }
        match self.stall.judge(now, kafka.answered()) {
            Verdict::Fine => {}
            Verdict::Ask => {
                say("Kafka takes nothing; asking it why");
                kafka.ask();
            }
            Verdict::GiveUp => {
                bail!("Kafka answers, but took nothing for {} s", self.stall.lasted(now).as_secs())
            }
        }
        Ok(())
    }
}
