//! Decides which rows of a chunk may still be emitted. Pure.
//!
//! A chunk is the result of a query, and the stream goes on meanwhile. A row that the stream has emitted in a newer state must
//! not be emitted again in the chunk's older state. The snapshot of the query decides:
//!
//! * A transaction that the chunk sees is in the WAL before the watermark, which is written after the query. When the
//!   stream meets the watermark, it has emitted that transaction, and the chunk's row is in that state or a newer one.
//! * A transaction that the stream emitted and the chunk does not see left a newer row. The chunk's row is dropped.
//!
//! So the window keeps, by key, the last transaction that the stream emitted, and forgets those that a chunk sees. It must
//! know every transaction that a chunk does not see; this is what the base is for. After the window opens, the next
//! transaction id is taken as the base. A chunk counts only if every transaction older than the base is over. The
//! transactions that it does not see began later, and are emitted while the window is open. As for a new slot, the first chunk
//! waits for running transactions, and no later one does.
//!
//! Two watermarks, as in other programs, would not do. A transaction may be in the WAL before the first watermark and still
//! be invisible to a query after it: while it waits for a standby, or before its backend has announced its end. It is not
//! between the watermarks, so the chunk's older row would be emitted last.

use std::collections::HashMap;
use std::str::FromStr;

/// The size of the keys in a window.
const WINDOW_BYTES_MAX: usize = 8 << 20;
/// The overhead of a key, added to its bytes.
const KEY_OVERHEAD_BYTES: usize = 64;

/// `pg_current_snapshot()`: which transactions a query sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// Every transaction with a lower id is over.
    pub oldest_running: u64,
    /// The lowest id that has not begun.
    pub next: u64,
    /// The ids in between that run, sorted.
    running: Vec<u64>,
}

impl FromStr for Visible {
    type Err = String;

    fn from_str(text: &str) -> Result<Visible, String> {
        let bad = || format!("the server answered `{text}`, which is not a snapshot");
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
    /// Whether a committed transaction is seen. The stream has only the lower half of the id. The whole id is the nearest
    /// to the present, since the WAL does not reach back two thousand million transactions.
    pub fn sees(&self, xid: u32) -> bool {
        let distance = xid.wrapping_sub(self.next as u32).cast_signed();
        let xid = self.next.saturating_add_signed(i64::from(distance));
        xid < self.next && (xid < self.oldest_running || self.running.binary_search(&xid).is_err())
    }
}

/// The keys that the stream has emitted, each with the last transaction that changed it. An earlier transaction of the
/// same row was over before, so a snapshot that sees the last one sees them all.
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
    /// A change could not be recorded, so no chunk can be judged.
    Broken,
}

impl Window {
    /// Opens an empty window.
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

    /// Forgets the transactions that every later chunk sees.
    pub fn forget(&mut self, visible: &Visible) {
        self.keys.retain(|_, xid| !visible.sees(*xid));
        self.bytes = self.keys.keys().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum();
    }

    /// Whether the stream emitted a newer state of the row than a chunk. `forget` must have had the chunk's snapshot.
    pub fn has(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
