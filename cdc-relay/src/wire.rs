//! A replication session with Postgres: start-up, simple queries, then the copy stream, decoded in its own buffer.
//!
//! Why not a client library: the server's CPU and ours depend on *when* the socket is read (late and in large
//! pieces under backlog, at once when idle), and on not copying rows between tasks. Nothing here acknowledges
//! anything by itself.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::{Config, Host, SslMode};

use crate::lsn::{Lsn, PgTime};

#[derive(Debug)]
pub enum WireError {
    Io(io::Error),
    /// The server said no.
    Server {
        code: String,
        message: String,
    },
    Protocol(String),
}

impl WireError {
    /// The SQLSTATE, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            Self::Io(_) | Self::Protocol(_) => None,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection to Postgres: {error}"),
            Self::Server { code, message } => write!(f, "Postgres: {message} (SQLSTATE {code})"),
            Self::Protocol(what) => write!(f, "Postgres protocol: {what}"),
        }
    }
}

impl std::error::Error for WireError {}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        WireError::Io(error)
    }
}

type Result<T> = std::result::Result<T, WireError>;

fn protocol<T>(what: &str) -> Result<T> {
    Err(WireError::Protocol(what.to_owned()))
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(on),
            Self::Unix(socket) => socket.set_nonblocking(on),
        }
    }

    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(timeout))
            }
            Self::Unix(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(timeout))
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buf),
            Self::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(buf),
            Self::Unix(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

/// A session that answers queries; `start` turns it into a stream.
#[derive(Debug)]
pub struct Session {
    socket: Socket,
    input: BytesMut,
}

/// One row of a simple query's answer.
pub type Row = Vec<Option<String>>;

impl Session {
    /// Connects as a logical walsender of the URL's database.
    pub fn connect(config: &Config) -> Result<Session> {
        if config.get_ssl_mode() == SslMode::Require {
            return protocol("sslmode=require is not supported yet: use a private network or a local socket");
        }
        let timeout = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(10));
        let mut session = Session { socket: open(config, timeout)?, input: BytesMut::new() };
        session.socket.set_timeouts(timeout)?;
        let user = config.get_user().unwrap_or("postgres");
        let parameters = [
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("replication", "database"),
            ("application_name", "cdc-relay"),
            ("client_encoding", "UTF8"),
            // The text forms that `json` writes onward almost unchanged.
            ("DateStyle", "ISO, YMD"),
            ("TimeZone", "UTC"),
            ("IntervalStyle", "iso_8601"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "3"),
            ("statement_timeout", "0"),
        ];
        let options = config.get_options().map(|options| ("options", options));
        let mut out = BytesMut::new();
        frontend::startup_message(parameters.into_iter().chain(options), &mut out)?;
        session.socket.write_all(&out)?;
        session.authenticate(user, config.get_password().unwrap_or_default())?;
        // From here on only the server's own slowness counts, such as making a slot while transactions run.
        session.socket.set_timeouts(Duration::from_secs(120))?;
        Ok(session)
    }

    fn authenticate(&mut self, user: &str, password: &[u8]) -> Result<()> {
        let mut scram = None;
        loop {
            let mut out = BytesMut::new();
            match self.message()? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => frontend::password_message(password, &mut out)?,
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                }
                Message::AuthenticationSasl(body) => {
                    if !body.mechanisms().any(|name| Ok(name == sasl::SCRAM_SHA_256))? {
                        return protocol("the server offers no SCRAM-SHA-256");
                    }
                    let start = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
                    frontend::sasl_initial_response(sasl::SCRAM_SHA_256, start.message(), &mut out)?;
                    scram = Some(start);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL continued before it began") };
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL ended before it began") };
                    scram.finish(body.data())?;
                }
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                _ => return protocol("unexpected message while signing in"),
            }
            self.socket.write_all(&out)?;
        }
    }

    /// Runs one statement and answers its rows.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.socket.write_all(&out)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.message()? {
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::ErrorResponse(body) => failed = Some(server_error(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Begins streaming where the slot stands: 0/0 asks for no position, since the slot knows best.
    pub fn start(mut self, slot: &str, publication: &str) -> Result<Replication> {
        let publication = publication.replace('"', "\"\"").replace('\'', "''");
        let sql = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL 0/0 (proto_version '1', publication_names '\"{publication}\"')",
            slot.replace('"', "\"\"")
        );
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out)?;
        self.socket.write_all(&out)?;
        loop {
            // The copy-both answer has a tag that the library does not know.
            while self.input.first().is_none() {
                self.fill()?;
            }
            if self.input.first() == Some(&b'W') {
                let mut wire =
                    Replication { socket: self.socket, buffer: self.input.to_vec(), at: 0, end: 0 };
                wire.end = wire.buffer.len();
                wire.skip_copy_both()?;
                wire.socket.set_nonblocking(true)?;
                return Ok(wire);
            }
            match self.message()? {
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return protocol("unexpected answer to START_REPLICATION"),
            }
        }
    }

    fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.input)? {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0u8; 8192];
        match self.socket.read(&mut chunk)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            n => {
                self.input.extend_from_slice(chunk.get(..n).unwrap_or_default());
                Ok(())
            }
        }
    }
}

fn open(config: &Config, timeout: Duration) -> Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the URL names no host");
    for (index, host) in config.get_hosts().iter().enumerate() {
        let ports = config.get_ports();
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let attempt = match host {
            Host::Tcp(name) => connect_tcp(name, port, timeout).map(Socket::Tcp),
            Host::Unix(folder) => {
                UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).map(Socket::Unix)
            }
        };
        match attempt {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match connect_address(address, timeout) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_address(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    let local = address.ip().is_loopback();
    if local {
        socket.set_recv_buffer_size(LOOPBACK_WINDOW)?;
    }
    socket.connect_timeout(&address.into(), timeout)?;
    if local {
        socket.set_recv_buffer_size(LOOPBACK_BUFFER)?;
    }
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket.into())
}

fn row(body: &DataRowBody) -> Result<Row> {
    let bytes = body.buffer();
    let cell = |range: Option<Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(bytes.get(range).unwrap_or_default()).into_owned()))
    };
    Ok(body.ranges().map(cell).collect()?)
}

fn server_error(mut fields: ErrorFields<'_>) -> WireError {
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    WireError::Server { code, message }
}

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

/// On loopback the sender does the receiver's work too, message by message, as long as the window is open. A small
/// window closes while we are away, the messages pile up on the sender's side, and travel together: twice the
/// throughput at half the server's CPU. Over a network the window has to cover the distance: the kernel's choice.
const LOOPBACK_WINDOW: usize = 32 << 10;
/// The memory for that window, given after connecting, when it no longer widens it. Many small messages take many
/// times their size; without this the kernel drops some while we do not read, and with them the server's
/// acknowledgements of our confirmations, until the server takes us for dead.
const LOOPBACK_BUFFER: usize = 2 << 20;

/// One read takes at most this; a larger message makes the buffer grow for as long as it lasts.
const BUFFER: usize = 256 << 10;

impl Replication {
    fn skip_copy_both(&mut self) -> Result<()> {
        loop {
            if let Some(range) = self.message()?.map(|(_, body)| body) {
                self.at = range.end;
                return Ok(());
            }
            self.read()?;
        }
    }

    /// Reads what is there, up to the buffer's size. `Ok(0)`: nothing, for now.
    pub fn read(&mut self) -> Result<usize> {
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
        let wanted = announced.max(BUFFER);
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
    pub fn next(&mut self) -> Result<Option<Frame>> {
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
                (b'c', _) => return protocol("the server ended the stream"),
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

    /// Tells the server what is confirmed. Waits if the socket is full, though not for ever.
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
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&limit)) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// Ends the session in good order, so that the slot is free at once.
    pub fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        // The server notices a closed socket too.
        let _ = self.socket.write_all(&out);
    }
}

fn copied_error(body: &[u8]) -> WireError {
    let field = |tag: u8| {
        let part = body.split(|&b| b == 0).find(|part| part.first() == Some(&tag))?;
        Some(String::from_utf8_lossy(part.get(1..)?).into_owned())
    };
    WireError::Server { code: field(b'C').unwrap_or_default(), message: field(b'M').unwrap_or_default() }
}

impl AsFd for Replication {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
