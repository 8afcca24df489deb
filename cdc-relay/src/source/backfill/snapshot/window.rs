//! Which rows of a chunk may still be emitted: pure.
//!
//! A chunk is what a query saw; the stream goes on meanwhile. A row of the chunk that the stream has emitted in a newer
//! state must not be emitted after it. What decides is what the query's snapshot sees:
//!
//! * A transaction that the chunk sees is in the WAL before the mark that is written after the query. When the stream
//!   reaches the mark it has emitted the transaction, and the chunk's row is that state or a newer one.
//! * A transaction that the stream emitted and the chunk does not see left a newer row: the chunk's is dropped.
//!
//! So the window keeps, by key, the last transaction that the stream emitted, and forgets those that a chunk sees. It has
//! to know of all that a chunk does not see: hence the base. After the window opens, the next transaction id is taken;
//! a chunk counts only if every transaction older than this is over. What it does not see began later, and is emitted
//! while the window is open. Like making a slot, the first chunk waits for the transactions that run; none waits again.
//!
//! Why not two marks, as others do, and drop what changed between them? A transaction may be in the WAL before the
//! first mark and still be invisible to a query after it: while it waits for a standby, or before its backend has said
//! that it ended. It is not between the marks, so the older row would be emitted, last.

use std::collections::HashMap;
use std::str::FromStr;

/// The keys in a window weigh at most this.
const WINDOW_BYTES_MAX: usize = 8 << 20;
/// What a key weighs besides its bytes.
const KEY_OVERHEAD_BYTES: usize = 64;

/// `pg_current_snapshot()`: which transactions a query sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// Every older transaction is over.
    pub oldest_running: u64,
    /// The first that has not begun.
    pub next: u64,
    /// Sorted.
    running: Vec<u64>,
}

impl FromStr for Visible {
    type Err = String;

    fn from_str(text: &str) -> Result<Visible, String> {
        let bad = || format!("`{text}` is not a snapshot");
        let number = |part: Option<&str>| part.and_then(|part| part.parse().ok()).ok_or_else(bad);
        let mut parts = text.splitn(3, ':');
        let (oldest_running, next) = (number(parts.next())?, number(parts.next())?);
        let running = parts.next().unwrap_or_default().split(',').filter(|part| !part.is_empty());
        let mut running = running.map(|part| number(Some(part))).collect::<Result<Vec<u64>, _>>()?;
        running.sort_unstable();
        Ok(Visible { oldest_running, next, running })
    }
}

impl Visible {
    /// Whether a committed transaction is seen. The stream has only the lower half of its id: it is the one of that
    /// half next to the present, since the WAL does not reach back two thousand million transactions.
    pub fn sees(&self, xid: u32) -> bool {
        let distance = xid.wrapping_sub(self.next as u32).cast_signed();
        let xid = self.next.saturating_add_signed(i64::from(distance));
        xid < self.next && (xid < self.oldest_running || self.running.binary_search(&xid).is_err())
    }
}

/// The keys that the stream emitted lately, each with the last transaction that changed it. An earlier one of the same
/// row was over before that could change it, so whoever sees the last sees them all.
#[derive(Debug, Default)]
pub struct Window {
    state: State,
    keys: HashMap<Box<[u8]>, u32>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open,
    /// Something was changed that it cannot hold or name: no chunk can be judged by it.
    Broken,
}

impl Window {
    /// Begins anew, with nothing in it.
    pub fn open(&mut self) {
        self.close();
        self.state = State::Open;
    }

    pub fn close(&mut self) {
        *self = Window::default();
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The stream emitted a change of this key.
    pub fn changed(&mut self, key: &[u8], xid: u32) {
        if self.state != State::Open {
            return;
        }
        if let Some(last) = self.keys.get_mut(key) {
            *last = xid;
            return;
        }
        self.bytes += key.len() + KEY_OVERHEAD_BYTES;
        if self.bytes > WINDOW_BYTES_MAX {
            return self.lose_track();
        }
        self.keys.insert(key.into(), xid);
    }

    /// The stream emitted a change whose key is not known.
    pub fn lose_track(&mut self) {
        if self.state == State::Open {
            self.close();
            self.state = State::Broken;
        }
    }

    /// Forgets what every chunk from now on sees.
    pub fn forget(&mut self, visible: &Visible) {
        self.keys.retain(|_, xid| !visible.sees(*xid));
        self.bytes = self.keys.keys().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum();
    }

    /// Whether the stream emitted a newer state than a chunk whose sight was forgotten.
    pub fn has(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
