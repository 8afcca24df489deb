//! Where the sinks report what is acknowledged, and where the source's thread waits for it.
//!
//! A report is a lock and a counter, so that a sink's own thread is never held up; the source's thread is woken
//! through an eventfd that it polls together with its socket, and only when it asked to be.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::checkpoint::progress::{SINKS, Sink, TransactionSeq};

/// Some messages of one transaction are acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub transaction_seq: TransactionSeq,
    pub sink: Sink,
    pub count: u32,
    /// When the first of them was.
    pub at: Instant,
}

#[derive(Debug)]
pub struct Acks {
    queue: Mutex<Vec<Ack>>,
    /// Bytes in flight by sink.
    flights: [AtomicI64; SINKS],
    failure: Mutex<Option<String>>,
    /// The source's thread waits for the bytes in flight to fall to this; `NOT_WAITING` if it does not.
    wake_at: AtomicI64,
    stopping: AtomicBool,
    wake: OwnedFd,
}

const NOT_WAITING: i64 = -1;

fn unpoisoned<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The guarded values are valid after any panic.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Acks {
    pub fn new() -> Result<Acks> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Acks {
            queue: Mutex::default(),
            flights: Default::default(),
            failure: Mutex::default(),
            wake_at: AtomicI64::new(NOT_WAITING),
            stopping: AtomicBool::new(false),
            wake: eventfd(0, flags).context("no eventfd")?,
        })
    }

    /// A message of `weight` bytes is handed to a sink.
    pub fn depart(&self, sink: Sink, weight: i64) {
        self.flights[sink as usize].fetch_add(weight, Ordering::Relaxed);
    }

    /// It was not taken, or is given up: nothing is acknowledged.
    pub fn undo(&self, sink: Sink, weight: i64) {
        self.flights[sink as usize].fetch_sub(weight, Ordering::Relaxed);
    }

    /// The sink is gone, and with it all that it had: nothing more will land.
    pub fn reset(&self, sink: Sink) {
        self.flights[sink as usize].store(0, Ordering::SeqCst);
    }

    /// The sink has it for good.
    pub fn land(&self, sink: Sink, transaction_seq: TransactionSeq, weight: i64) {
        let mut queue = unpoisoned(&self.queue);
        match queue.last_mut() {
            Some(last) if last.transaction_seq == transaction_seq && last.sink == sink => last.count += 1,
            _ => queue.push(Ack { transaction_seq, sink, count: 1, at: Instant::now() }),
        }
        drop(queue);
        let left = self.flights[sink as usize].fetch_sub(weight, Ordering::SeqCst) - weight;
        let wake_at = self.wake_at.load(Ordering::SeqCst);
        if left <= wake_at && self.wake_at.swap(NOT_WAITING, Ordering::SeqCst) != NOT_WAITING {
            self.wake();
        }
    }

    /// The sink cannot go on: everything not acknowledged has to be emitted again by a new session.
    pub fn fail(&self, reason: String) {
        unpoisoned(&self.failure).get_or_insert(reason);
        self.wake();
    }

    pub fn failure(&self) -> Option<String> {
        unpoisoned(&self.failure).clone()
    }

    pub fn clear_failure(&self) {
        unpoisoned(&self.failure).take();
    }

    /// Asks the source's thread to flush and end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Bytes handed to a sink and not yet acknowledged; 0 means that nothing is in flight.
    pub fn bytes(&self, sink: Sink) -> i64 {
        self.flights[sink as usize].load(Ordering::SeqCst)
    }

    /// Moves what was reported into `into`.
    pub fn take(&self, into: &mut Vec<Ack>) {
        into.append(&mut unpoisoned(&self.queue));
    }

    /// From now on a sink whose bytes in flight fall to `bytes` wakes the poller, once.
    pub fn wake_at(&self, bytes: i64) {
        self.wake_at.store(bytes, Ordering::SeqCst);
    }

    pub fn no_wake(&self) {
        self.wake_at.store(NOT_WAITING, Ordering::SeqCst);
    }

    pub fn wake(&self) {
        // Full means that a wake-up is already pending.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes the pending wake-ups, so that the next poll blocks.
    pub fn drain_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }
}

impl AsFd for Acks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
