//! Collects the sinks' acknowledgements for the thread of a source.
//!
//! * An acknowledgement costs a lock and a counter, so that it never holds up a sink's own thread.
//! * The source's thread sleeps on an eventfd that it polls together with its socket. It is woken only when it asked to be.
//! * A failure is kept until a new session clears it; the first one counts.

mod in_flight;
mod waker;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::in_flight::InFlight;
use self::waker::Waker;
use crate::checkpoint::progress::{Sink, TransactionSeq};

/// A sink acknowledged some messages of one transaction.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub transaction_seq: TransactionSeq,
    pub sink: Sink,
    pub count: u32,
    /// When the sink acknowledged the first of them.
    pub at: Instant,
}

/// The sinks' side and the source's side of all messages in flight.
#[derive(Debug)]
pub struct Acks {
    queue: AckQueue,
    in_flight: InFlight,
    failure: Failure,
    stop: AtomicBool,
    waker: Waker,
}

/// Acknowledgements that the source's thread has not taken yet.
#[derive(Debug, Default)]
struct AckQueue(Mutex<Vec<Ack>>);

/// Why a sink cannot go on.
#[derive(Debug, Default)]
struct Failure(Mutex<Option<String>>);

fn unpoisoned<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The guarded values are valid after any panic.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AckQueue {
    fn push(&self, sink: Sink, transaction_seq: TransactionSeq) {
        let mut queue = unpoisoned(&self.0);
        match queue.last_mut() {
            Some(last) if last.transaction_seq == transaction_seq && last.sink == sink => last.count += 1,
            _ => queue.push(Ack { transaction_seq, sink, count: 1, at: Instant::now() }),
        }
    }

    fn take(&self, into: &mut Vec<Ack>) {
        into.append(&mut unpoisoned(&self.0));
    }
}

impl Failure {
    fn set(&self, reason: String) {
        unpoisoned(&self.0).get_or_insert(reason);
    }

    fn get(&self) -> Option<String> {
        unpoisoned(&self.0).clone()
    }

    fn clear(&self) {
        unpoisoned(&self.0).take();
    }
}

impl Acks {
    /// # Errors
    /// When the system has no eventfd left.
    pub fn new() -> Result<Acks> {
        Ok(Acks {
            queue: AckQueue::default(),
            in_flight: InFlight::default(),
            failure: Failure::default(),
            stop: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    /// A message of `weight` bytes was handed to a sink.
    pub fn added(&self, sink: Sink, weight: i64) {
        self.in_flight.add(sink, weight);
    }

    /// The sink did not take the message, or gave it up: it acknowledges nothing.
    pub fn withdrawn(&self, sink: Sink, weight: i64) {
        self.in_flight.withdraw(sink, weight);
    }

    /// The sink is gone with all that it had in flight: it acknowledges nothing more.
    pub fn reset(&self, sink: Sink) {
        self.in_flight.reset(sink);
    }

    /// The sink stored the message durably.
    pub fn acknowledged(&self, sink: Sink, transaction_seq: TransactionSeq, weight: i64) {
        self.queue.push(sink, transaction_seq);
        if self.in_flight.acknowledge(sink, weight) {
            self.wake();
        }
    }

    /// The sink cannot go on. A new session has to emit again all that is not acknowledged.
    pub fn fail(&self, reason: String) {
        self.failure.set(reason);
        self.wake();
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.get()
    }

    pub fn clear_failure(&self) {
        self.failure.clear();
    }

    /// Asks the source's thread to flush and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Bytes handed to a sink and not yet acknowledged; 0 means that nothing is in flight.
    pub fn bytes(&self, sink: Sink) -> i64 {
        self.in_flight.bytes(sink)
    }

    /// Moves the acknowledgements so far to the end of `into`.
    pub fn take(&self, into: &mut Vec<Ack>) {
        self.queue.take(into);
    }

    /// From now on the first sink whose bytes in flight fall to `bytes` wakes the poller, once.
    pub fn wake_at(&self, bytes: i64) {
        self.in_flight.wake_at(bytes);
    }

    pub fn no_wake(&self) {
        self.in_flight.no_wake();
    }

    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Takes the pending wake-ups, so that the next poll blocks.
    pub fn drain_wake(&self) {
        self.waker.drain();
    }

    /// Calls `done` until it returns true. In between it sleeps for `interval`, or until a sink's bytes in flight fall to
    /// `bytes` (negative: they never do). The wake-up is armed before each call, so that no acknowledgement is missed.
    ///
    /// # Errors
    /// Those of `done`, and when the system cannot poll.
    pub fn wait_until(
        &self,
        bytes: i64,
        interval: Duration,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        loop {
            self.wake_at(bytes);
            let result = match done() {
                Ok(false) => self.sleep(interval).map(|()| false),
                result => result,
            };
            self.no_wake();
            if result? {
                return Ok(());
            }
        }
    }

    /// Sleeps at most for `timeout`, until a sink's bytes in flight fall to `bytes`. It does not sleep if `busy` returns
    /// false once the wake-up is armed.
    ///
    /// # Errors
    /// When the system cannot poll.
    pub fn sleep_while(&self, bytes: i64, timeout: Duration, busy: impl FnOnce() -> bool) -> Result<()> {
        self.wake_at(bytes);
        let slept = if busy() { self.sleep(timeout) } else { Ok(()) };
        self.no_wake();
        slept
    }

    /// Sleeps for `time`, whatever wakes the poller, or until `stop`.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stopping() {
            let rest = until.saturating_duration_since(Instant::now());
            // A failed poll only shortens the pause.
            if rest.is_zero() || self.sleep(rest).is_err() {
                return;
            }
        }
    }

    /// Sleeps until something wakes the poller, a signal arrives, or `timeout` has passed; takes the wake-ups.
    ///
    /// # Errors
    /// When the system cannot poll.
    pub fn sleep(&self, timeout: Duration) -> Result<()> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot poll for acknowledgements"),
        }
        self.drain_wake();
        Ok(())
    }
}

impl AsFd for Acks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay that handed its slot over stands aside for the whole time, though its sinks and its watchers wake it.
    #[test]
    fn only_a_stop_ends_a_pause() {
        let acks = Acks::new().expect("an eventfd");
        acks.wake();
        let (began, time) = (Instant::now(), Duration::from_millis(50));
        acks.pause(time);
        assert!(began.elapsed() >= time);
        acks.stop();
        acks.pause(Duration::from_secs(3600));
    }
}
