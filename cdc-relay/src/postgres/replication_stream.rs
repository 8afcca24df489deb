//! The replication stream: reads frames in place from one buffer, and confirms positions.
//!
//! * A caller waits for the server by `Replication::wait`, never on the socket alone: our buffer may hold whole frames, the
//!   TLS session decrypted bytes or an error, and output may be pending.
//! * Nothing is confirmed that the caller did not confirm.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::postgres::error::{PostgresError, Result, protocol};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::session::{LOGICAL_MESSAGES_VERSION, Session};
use crate::postgres::socket::Socket;
use crate::postgres::sql;

/// A message of the server while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A pgoutput message, at this range of `Replication::bytes`.
    Data(Range<usize>),
    Keepalive {
        wal_end: Lsn,
        reply: bool,
    },
}

/// Which transactions the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origins {
    Any,
    /// Those that were written on this server.
    None,
}

/// The first major version whose `pgoutput` can leave out what another server wrote.
pub const ORIGIN_VERSION: u32 = 16;

/// A started replication. A frame stays valid until the next `read`.
#[derive(Debug)]
pub struct Replication {
    socket: Socket,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

/// The size of the buffer, in bytes. A larger message makes it grow until the message is taken.
const BUFFER_BYTES: usize = 256 << 10;
/// The least room for a read, in bytes. It exceeds what `read_scheduler` takes for a drained socket, so that a read that only
/// the buffer cut short does not look like one.
const READ_BYTES_MIN: usize = 64 << 10;
/// How long the server may accept none of our output.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a session that waits for something else confirms.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The result of `Replication::wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Input is available: `read`, then `frame`.
    pub server: bool,
    /// The other descriptor is readable.
    pub woken: bool,
}

impl Replication {
    /// Starts streaming where the slot was confirmed. 0/0 asks for no position, because the slot knows its own. From PostgreSQL
    /// 14 on the stream carries logical messages: commands send their requests to the relay by them. `origins`: what becomes of
    /// transactions that logical replication copied from another server. Before 16 the server sends them always, and names
    /// their origin as long as it knows it.
    pub fn start(
        session: Session,
        slot: &str,
        publications: &[&str],
        origins: Origins,
    ) -> Result<Replication> {
        let (slot, publications) = (sql::replication_identifier(slot), sql::replication_names(publications));
        let version = session.version();
        let messages = if version >= LOGICAL_MESSAGES_VERSION { ", messages 'true'" } else { "" };
        let origin =
            if origins == Origins::None && version >= ORIGIN_VERSION { ", origin 'none'" } else { "" };
        let (socket, read) = session.into_copy_both(&format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 \
             (proto_version '1', publication_names {publications}{messages}{origin})"
        ))?;
        Replication::begin(socket, read)
    }

    /// Takes over a socket in two-way copy; `read` holds the copy's first message and all bytes behind it.
    fn begin(socket: Socket, read: Vec<u8>) -> Result<Replication> {
        let mut stream = Replication { socket, end: read.len(), buffer: read, at: 0 };
        loop {
            if let Some((_, answer)) = stream.message()? {
                stream.at = answer.end;
                stream.socket.set_nonblocking(true)?;
                return Ok(stream);
            }
            stream.read()?;
        }
    }

    /// Waits until input is available, `wake` is readable, or the time is over.
    pub fn wait(&mut self, wake: impl AsFd, timeout: Duration) -> Result<Ready> {
        let buffered = self.has_buffered_input();
        let timeout = if buffered { Duration::ZERO } else { timeout };
        let output = if self.socket.has_pending_output() { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | output), PollFd::new(&wake, PollFlags::IN)];
        wait_for(&mut fds, timeout)?;
        let (server, woken) = (fds[0].revents(), !fds[1].revents().is_empty());
        if server.contains(PollFlags::OUT) {
            match self.socket.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Ready { server: buffered || server.intersects(!PollFlags::OUT), woken })
    }

    /// Whether input is available although the descriptor is not readable.
    fn has_buffered_input(&mut self) -> bool {
        // A malformed message counts: the caller takes its error.
        !matches!(self.message(), Ok(None)) || self.socket.has_buffered_input()
    }

    /// Reads available bytes, up to the buffer's size. `Ok(0)`: none for now, or the buffer still holds frames.
    pub fn read(&mut self) -> Result<usize> {
        // The server's last message says why it closes the connection, so it is taken before the end is noticed.
        if !matches!(self.message(), Ok(None)) {
            return Ok(0);
        }
        self.make_room();
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        match self.socket.read(room) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => {
                self.end += n;
                Ok(n)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Moves the incomplete message to the front, and fits the buffer to its length.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        let announced = match self.buffer.get(1..5) {
            Some(&[a, b, c, d]) if self.end >= 5 => u32::from_be_bytes([a, b, c, d]) as usize + 1,
            _ => 0,
        };
        let wanted = (announced + READ_BYTES_MIN).max(BUFFER_BYTES);
        if self.buffer.len() != wanted && self.end <= wanted {
            self.buffer.resize(wanted, 0);
            self.buffer.shrink_to_fit();
        }
    }

    /// The tag of the next whole message, and the range of its body.
    fn message(&self) -> Result<Option<(u8, Range<usize>)>> {
        self.message_at(self.at)
    }

    fn message_at(&self, at: usize) -> Result<Option<(u8, Range<usize>)>> {
        let Some(&[tag, a, b, c, d]) = self.buffer.get(at..at + 5) else { return Ok(None) };
        if at + 5 > self.end {
            return Ok(None);
        }
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=1 << 30).contains(&len) {
            return protocol("a message has an impossible length");
        }
        let end = at + 1 + len;
        Ok((end <= self.end).then_some((tag, at + 5..end)))
    }

    /// Takes the next whole frame, if the buffer holds one.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        while let Some((tag, body)) = self.message()? {
            self.at = body.end;
            let bytes = self.bytes(&body);
            match (tag, bytes) {
                (b'd', [b'w', ..]) if bytes.len() >= 25 => {
                    return Ok(Some(Frame::Data(body.start + 25..body.end)));
                }
                (b'd', &[b'k', a, b, c, d, e, f, g, h, .., reply]) if bytes.len() == 18 => {
                    let wal_end = Lsn(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
                    return Ok(Some(Frame::Keepalive { wal_end, reply: reply == 1 }));
                }
                (b'E', _) => return Err(stream_error(bytes)),
                (b'N' | b'S', _) => {}
                // A server that shuts down completes the command without ending the copy.
                (b'c' | b'C', _) => return protocol("the server ended the stream"),
                _ => return protocol("unexpected message in the stream"),
            }
        }
        Ok(None)
    }

    /// The range of the next frame that `frame` would take, if it is a pgoutput message; the frame is not taken.
    pub fn next_data(&self) -> Result<Option<Range<usize>>> {
        let mut at = self.at;
        while let Some(message) = self.message_at(at)? {
            match message.0 {
                // `frame` passes over these.
                b'N' | b'S' => at = message.1.end,
                _ => return Ok(self.data(&message)),
            }
        }
        Ok(None)
    }

    /// The first value that `find` returns for one of the pgoutput messages in the buffer; none of them is taken.
    pub fn find_data<T>(&self, find: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let mut at = self.at;
        // The caller takes the error of a malformed message when it comes to it.
        while let Ok(Some(message)) = self.message_at(at) {
            if let Some(found) = self.data(&message).and_then(|data| find(self.bytes(&data))) {
                return Some(found);
            }
            at = message.1.end;
        }
        None
    }

    /// The pgoutput message of a message of the copy.
    fn data(&self, (tag, body): &(u8, Range<usize>)) -> Option<Range<usize>> {
        let is_data = *tag == b'd' && body.len() >= 25 && self.buffer.get(body.start) == Some(&b'w');
        is_data.then(|| body.start + 25..body.end)
    }

    /// When the server sent the pgoutput message at this range, by its own clock.
    pub fn sent_at(&self, data: &Range<usize>) -> PgTime {
        let header = data.start.checked_sub(8).and_then(|at| self.buffer.get(at..data.start));
        let time = header.and_then(|time| time.try_into().ok()).map(i64::from_be_bytes);
        PgTime(time.unwrap_or_default())
    }

    /// The number of bytes read and not yet taken as frames.
    pub fn buffered(&self) -> usize {
        self.end - self.at
    }

    #[inline]
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// Confirms a position to the server. Waits for a full socket, at most `WRITE_TIMEOUT`.
    pub fn confirm(&mut self, flushed: Lsn, request_reply: bool) -> Result<()> {
        let mut frame = [0u8; 39];
        frame[0] = b'd';
        frame[1..5].copy_from_slice(&38u32.to_be_bytes());
        frame[5] = b'r';
        for part in [6, 14, 22] {
            frame[part..part + 8].copy_from_slice(&flushed.0.to_be_bytes());
        }
        frame[30..38].copy_from_slice(&PgTime::now().0.to_be_bytes());
        frame[38] = u8::from(request_reply);
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_writable()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Confirms nothing new every second while `work` runs: the server ends a session that is silent for long. The caller finds a
    /// broken connection with its next read.
    pub fn confirm_while<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (working, over) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while over.recv_timeout(STATUS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if self.confirm(Lsn::ZERO, false).is_err() {
                        return;
                    }
                }
            });
            let result = work();
            drop(working);
            result
        })
    }

    fn wait_writable(&self) -> Result<()> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        wait_for(&mut fds, WRITE_TIMEOUT)?;
        if fds[0].revents().is_empty() {
            Err(io::Error::from(io::ErrorKind::TimedOut).into())
        } else {
            Ok(())
        }
    }

    /// Ends the session properly, so that the server frees the slot at once.
    pub fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        // If this fails, the server notices the closed socket.
        let _ = self.socket.write_all(&out).and_then(|()| self.socket.flush());
    }
}

fn stream_error(body: &[u8]) -> PostgresError {
    let field = |tag: u8| {
        let part = body.split(|&b| b == 0).find(|part| part.first() == Some(&tag))?;
        Some(String::from_utf8_lossy(part.get(1..)?).into_owned())
    };
    let mut message = field(b'M').unwrap_or_default();
    // The context names the position in the WAL.
    if let Some(context) = field(b'W') {
        message = format!("{message} ({context})");
    }
    PostgresError::Stream { code: field(b'C').unwrap_or_default(), message }
}

/// Polls; an interrupted wait counts as one that found nothing.
fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "replication_stream_tests.rs"]
mod tests;
