//! Counts the bytes in flight of each sink, and says when they have fallen far enough.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::checkpoint::progress::{SINKS, Sink};

/// `wake_at`, while nobody waits.
const NOT_WAITING: i64 = -1;

#[derive(Debug)]
pub struct InFlight {
    bytes: [AtomicI64; SINKS],
    /// The source's thread waits for the bytes to fall to this; `NOT_WAITING` if it does not.
    wake_at: AtomicI64,
}

impl Default for InFlight {
    fn default() -> InFlight {
        InFlight { bytes: Default::default(), wake_at: AtomicI64::new(NOT_WAITING) }
    }
}

impl InFlight {
    pub fn add(&self, sink: Sink, weight: i64) {
        self.bytes[sink as usize].fetch_add(weight, Ordering::Relaxed);
    }

    pub fn withdraw(&self, sink: Sink, weight: i64) {
        self.bytes[sink as usize].fetch_sub(weight, Ordering::Relaxed);
    }

    /// Returns whether the waiting thread has to be woken; true at most once for each `wake_at`.
    pub fn acknowledge(&self, sink: Sink, weight: i64) -> bool {
        let left = self.bytes[sink as usize].fetch_sub(weight, Ordering::SeqCst) - weight;
        let wake_at = self.wake_at.load(Ordering::SeqCst);
        left <= wake_at && self.wake_at.swap(NOT_WAITING, Ordering::SeqCst) != NOT_WAITING
    }

    pub fn reset(&self, sink: Sink) {
        self.bytes[sink as usize].store(0, Ordering::SeqCst);
    }

    pub fn bytes(&self, sink: Sink) -> i64 {
        self.bytes[sink as usize].load(Ordering::SeqCst)
    }

    pub fn wake_at(&self, bytes: i64) {
        self.wake_at.store(bytes, Ordering::SeqCst);
    }

    pub fn no_wake(&self) {
        self.wake_at.store(NOT_WAITING, Ordering::SeqCst);
    }
}
