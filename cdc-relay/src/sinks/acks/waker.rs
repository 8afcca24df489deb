//! Wakes a thread that polls, through an eventfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    pub fn new() -> Result<Waker> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Waker(eventfd(0, flags).context("no eventfd")?))
    }

    pub fn wake(&self) {
        // Full means that a wake-up is already pending.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the pending wake-ups.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
