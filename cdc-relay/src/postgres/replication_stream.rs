//! The copy stream: frames found in place in one buffer, and confirmations sent back.
//!
//! Whoever waits for the server waits by `Replication::wait`. The socket alone does not say whether there is something
//! to take: whole frames may lie in our buffer, decrypted bytes or an error in that of TLS, and what we owe the server
//! may not have left.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::session::{Result, WireError, protocol};
use crate::postgres::socket::Socket;

/// What the server sends while streaming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A pgoutput message, at this range of `Replication::bytes`.
    Data(Range<usize>),
    Keepalive {
        wal_end: Lsn,
        reply: bool,
    },
}

/// The copy stream. Frames stay valid until the next `read`.
#[derive(Debug)]
pub struct Replication {
    socket: Socket,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

/// One read takes at most this; a larger message makes the buffer grow for as long as it lasts.
const BUFFER: usize = 256 << 10;
/// Room for at least so much: more than `read_scheduler` takes for the end of what is there, so that a read which only the buffer
/// cut short does not look like one.
const READ_BYTES_MIN: usize = 64 << 10;
/// How long the server may take nothing of what we send.
const TAKES_NOTHING: Duration = Duration::from_secs(10);

/// What `Replication::wait` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// There is something to take: `read`, then `frame`.
    pub server: bool,
    /// The other descriptor is readable.
    pub woken: bool,
}

impl Replication {
    /// Takes over a session that was answered with copy-both; `read` is what came with the answer and after it.
    pub fn begin(socket: Socket, read: Vec<u8>) -> Result<Replication> {
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

    /// Waits until there is something to take, `wake` is readable, or the time is over.
    pub fn wait(&mut self, wake: impl AsFd, timeout: Duration) -> Result<Ready> {
        let here = self.holds();
        let timeout = if here { Duration::ZERO } else { timeout };
        let owes = if self.socket.owes() { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | owes), PollFd::new(&wake, PollFlags::IN)];
        wait_for(&mut fds, timeout)?;
        let (server, woken) = (fds[0].revents(), !fds[1].revents().is_empty());
        if server.contains(PollFlags::OUT) {
            match self.socket.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Ready { server: here || server.intersects(!PollFlags::OUT), woken })
    }

    /// Whether there is something to take that no descriptor says.
    fn holds(&mut self) -> bool {
        // What is no message is an error to take.
        !matches!(self.message(), Ok(None)) || self.socket.holds()
    }

    /// Reads what is there, up to the buffer's size. `Ok(0)`: nothing, for now, or frames that were not taken.
    pub fn read(&mut self) -> Result<usize> {
        // The end of the connection must not be noticed before the server's last word, which says why.
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

    /// Moves the incomplete rest to the front, and makes the buffer fit the message it belongs to.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        let announced = match self.buffer.get(1..5) {
            Some(&[a, b, c, d]) if self.end >= 5 => u32::from_be_bytes([a, b, c, d]) as usize + 1,
            _ => 0,
        };
        let wanted = (announced + READ_BYTES_MIN).max(BUFFER);
        if self.buffer.len() != wanted && self.end <= wanted {
            self.buffer.resize(wanted, 0);
            self.buffer.shrink_to_fit();
        }
    }

    /// The tag of the next whole message and where its body is.
    fn message(&self) -> Result<Option<(u8, Range<usize>)>> {
        let Some(&[tag, a, b, c, d]) = self.buffer.get(self.at..self.at + 5) else { return Ok(None) };
        if self.at + 5 > self.end {
            return Ok(None);
        }
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=1 << 30).contains(&len) {
            return protocol("a message has an impossible length");
        }
        let end = self.at + 1 + len;
        Ok((end <= self.end).then_some((tag, self.at + 5..end)))
    }

    /// The next whole frame that was read, if any.
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
                (b'E', _) => return Err(copied_error(bytes)),
                (b'N' | b'S', _) => {}
                // Shutting down, it completes the command without ending the copy.
                (b'c' | b'C', _) => return protocol("the server ended the stream"),
                _ => return protocol("unexpected message in the stream"),
            }
        }
        Ok(None)
    }

    /// Bytes that were read and not yet taken as frames.
    pub fn buffered(&self) -> usize {
        self.end - self.at
    }

    #[inline]
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// Confirms a position to the server. Waits if the socket is full, though not for ever.
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

    fn wait_writable(&self) -> Result<()> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        wait_for(&mut fds, TAKES_NOTHING)?;
        if fds[0].revents().is_empty() {
            Err(io::Error::from(io::ErrorKind::TimedOut).into())
        } else {
            Ok(())
        }
    }

    /// Ends the session in good order, so that the slot is free at once.
    pub fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        // The server notices a closed socket too.
        let _ = self.socket.write_all(&out).and_then(|()| self.socket.flush());
    }
}

fn copied_error(body: &[u8]) -> WireError {
    let field = |tag: u8| {
        let part = body.split(|&b| b == 0).find(|part| part.first() == Some(&tag))?;
        Some(String::from_utf8_lossy(part.get(1..)?).into_owned())
    };
    let mut message = field(b'M').unwrap_or_default();
    // Where in the WAL it was.
    if let Some(place) = field(b'W') {
        message = format!("{message} ({place})");
    }
    WireError::Stream { code: field(b'C').unwrap_or_default(), message }
}

/// An interrupted wait is one that found nothing.
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
