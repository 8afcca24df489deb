//! Buffers changes between the reader and the terminal, so that a slow terminal never blocks the reader for long.
//!
//! * A slot retains its server's WAL until it is read, so the reader goes on whatever the terminal does.
//! * Up to `WAITING_BYTES_MAX` wait to be printed. When nothing is taken for `WRITE_TIMEOUT`, changes are skipped.
//! * The number of skipped changes is printed in their place.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::show::Chunk;

/// Bytes that may wait to be printed.
const WAITING_BYTES_MAX: usize = 16 << 20;
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Changes left out since the last chunk.
    skipped: u64,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads the output any more.
    closed: bool,
    /// When the printer last took a chunk.
    taken_at: Option<Instant>,
}

/// One reader offers, one printer takes.
#[derive(Debug, Default)]
pub struct Output {
    state: Mutex<State>,
    moved: Condvar,
}

impl Output {
    fn state(&self) -> MutexGuard<'_, State> {
        // The guarded value is valid after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a chunk to the printer, or skips it. False: nobody reads the output any more.
    pub fn offer(&self, chunk: Chunk, skipped: impl Fn(u64) -> Vec<u8>) -> bool {
        let mut state = self.state();
        let began = Instant::now();
        loop {
            if state.closed {
                return false;
            }
            if state.bytes <= WAITING_BYTES_MAX {
                break;
            }
            let stuck = began.elapsed().min(state.taken_at.map_or(WRITE_TIMEOUT, |at| at.elapsed()));
            // After a first skipped change, the next ones do not wait again.
            if state.skipped > 0 || stuck >= WRITE_TIMEOUT {
                state.skipped += chunk.changes;
                return true;
            }
            state = self
                .moved
                .wait_timeout(state, WRITE_TIMEOUT - stuck)
                .map_or_else(|e| e.into_inner().0, |v| v.0);
        }
        let left_out = std::mem::take(&mut state.skipped);
        if left_out > 0 {
            state.push(skipped(left_out));
        }
        state.push(chunk.bytes);
        self.moved.notify_all();
        true
    }

    /// Nothing more comes: the printer ends when it has printed the rest.
    pub fn end(&self) {
        self.state().ended = true;
        self.moved.notify_all();
    }

    /// Prints until the end. An output that is closed is an end too; `closed` is called then.
    pub fn print(&self, mut to: impl Write, closed: impl Fn()) -> io::Result<()> {
        while let Some(bytes) = self.take() {
            if let Err(error) = to.write_all(&bytes).and_then(|()| to.flush()) {
                self.state().closed = true;
                self.moved.notify_all();
                closed();
                return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if let Some(bytes) = state.chunks.pop_front() {
                state.bytes -= bytes.len();
                state.taken_at = Some(Instant::now());
                self.moved.notify_all();
                return Some(bytes);
            }
            if state.ended {
                return None;
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn push(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.chunks.push_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A terminal that takes nothing until the test lets it.
    struct Stuck {
        go: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
        free: bool,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.free {
                self.go.recv().expect("go");
                self.free = true;
            }
            self.written.lock().expect("written").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_that_takes_nothing_does_not_hold_up_the_log_and_learns_what_is_missing() {
        let (output, written) = (Arc::new(Output::default()), Arc::new(Mutex::new(Vec::new())));
        let (go, wait) = mpsc::channel();
        let printer = std::thread::spawn({
            let (output, written) = (Arc::clone(&output), Arc::clone(&written));
            move || output.print(Stuck { go: wait, written, free: false }, || {})
        });
        let megabyte = || Chunk { bytes: vec![b'.'; 1 << 20], changes: 10 };
        let began = Instant::now();
        for _ in 0..100 {
            assert!(output.offer(megabyte(), |_| Vec::new()));
        }
        assert!(began.elapsed() < WRITE_TIMEOUT * 3, "the reader waited {:?}", began.elapsed());
        go.send(()).expect("go");
        // Room comes back; then the next chunk says what was left out.
        while output.state().bytes > 0 {
            std::thread::yield_now();
        }
        output
            .offer(Chunk { bytes: b"next".to_vec(), changes: 1 }, |n| format!("[{n} left out]").into_bytes());
        output.end();
        printer.join().expect("printer").expect("printed");
        let written = written.lock().expect("written");
        let end = String::from_utf8_lossy(written.get(written.len() - 24..).expect("end")).into_owned();
        let whole = written.iter().filter(|byte| **byte == b'.').count() >> 20;
        assert!((16..20).contains(&whole), "{whole} MB were kept");
        assert!(end.ends_with(&format!("[{} left out]next", (100 - whole) * 10)), "{end}");
    }

    #[test]
    fn a_closed_pipe_ends_the_reader() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::default();
        output.offer(Chunk { bytes: vec![0], changes: 1 }, |_| Vec::new());
        output.print(Closed, || {}).expect("no error");
        assert!(!output.offer(Chunk::default(), |_| Vec::new()));
    }
}
