//! The socket to Postgres: TCP, TLS or Unix.
//!
//! * Every connection step has a time-out.
//! * On loopback the receive window is small on purpose (`LOOPBACK_WINDOW`).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use crate::postgres::connection_url::Database;
use crate::postgres::tls_stream::TlsStream;

/// The receive window on loopback, in bytes. There the sender does the receiver's work too, message by message, while the
/// window is open. A small window closes while we are busy; the messages pile up on the sender's side and travel together.
/// That doubles the throughput at half the server's CPU. Over a network the kernel chooses a window for the distance.
const LOOPBACK_WINDOW: usize = 32 << 10;
/// The kernel's memory for that window, in bytes. It is set after connecting, when it no longer widens the window. Small
/// messages take many times their size. Without this memory the kernel drops some while we do not read, and with them the
/// server's acknowledgements of our confirmations; then the server ends the session as dead.
const LOOPBACK_BUFFER: usize = 2 << 20;

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    Unix(UnixStream),
}

impl Socket {
    pub fn set_nonblocking(&mut self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(on),
            Self::Tls(socket) => socket.set_nonblocking(on),
            Self::Unix(socket) => socket.set_nonblocking(on),
        }
    }

    pub fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => set_tcp_timeouts(socket, timeout),
            Self::Tls(socket) => set_tcp_timeouts(socket.tcp(), timeout),
            Self::Unix(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(timeout))
            }
        }
    }

    /// Whether a read would return bytes although the descriptor is not readable.
    pub fn has_buffered_input(&mut self) -> bool {
        match self {
            Self::Tls(socket) => socket.has_buffered_input(),
            Self::Tcp(_) | Self::Unix(_) => false,
        }
    }

    /// Whether written bytes still wait for the socket.
    pub fn has_pending_output(&self) -> bool {
        match self {
            Self::Tls(socket) => socket.has_pending_output(),
            Self::Tcp(_) | Self::Unix(_) => false,
        }
    }

    /// The data of SCRAM's channel binding; only TLS has it.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(socket) => socket.end_point(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buf),
            Self::Tls(socket) => socket.read(buf),
            Self::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(buf),
            Self::Tls(socket) => socket.write(buf),
            Self::Unix(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(socket) => socket.flush(),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Tls(socket) => socket.tcp().as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

fn set_tcp_timeouts(socket: &TcpStream, timeout: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))
}

/// Connects to the host of that index. With `encrypt`, TLS follows `sslmode`; without it there is none.
pub fn open(database: &Database, host: usize, timeout: Duration, encrypt: bool) -> io::Result<Socket> {
    let (hosts, addresses) = (database.get_hosts(), database.get_hostaddrs());
    let ports = database.get_ports();
    let port = ports.get(host).or(ports.first()).copied().unwrap_or(5432);
    let secured = |socket: io::Result<TcpStream>, name: &str| match encrypt {
        true => secure(socket?, name, database, timeout),
        false => socket.map(Socket::Tcp),
    };
    match (hosts.get(host), addresses.get(host)) {
        // `hostaddr` spares the look-up of `host`.
        (Some(Host::Tcp(name)), Some(address)) => {
            secured(connect_address((*address, port).into(), timeout), name)
        }
        (_, Some(address)) => {
            secured(connect_address((*address, port).into(), timeout), &address.to_string())
        }
        (Some(Host::Tcp(name)), None) => secured(connect_tcp(name, port, timeout), name),
        (Some(Host::Unix(folder)), None) => {
            UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).map(Socket::Unix)
        }
        (None, None) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the URL names no host")),
    }
}

/// The protocol's `SSLRequest`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

fn secure(mut socket: TcpStream, host: &str, database: &Database, timeout: Duration) -> io::Result<Socket> {
    let mode = database.get_ssl_mode();
    if mode == SslMode::Disable {
        return Ok(Socket::Tcp(socket));
    }
    set_tcp_timeouts(&socket, timeout)?;
    let direct = database.get_ssl_negotiation() == SslNegotiation::Direct;
    if !direct {
        socket.write_all(&SSL_REQUEST)?;
        // One byte and no more: bytes before the handshake are not authenticated.
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        match answer {
            [b'S'] => {}
            [b'N'] if mode == SslMode::Prefer => return Ok(Socket::Tcp(socket)),
            [b'N'] => {
                return Err(io::Error::other(
                    "the server has no TLS, and sslmode asks for it: enable ssl on the server, or change sslmode",
                ));
            }
            _ => return Err(io::Error::other("the answer to the request for TLS is not Postgres'")),
        }
    }
    let encrypted = TlsStream::handshake(socket, database.tls(), host);
    let encrypted = encrypted.map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}")))?;
    if direct && !encrypted.has_postgres_alpn() {
        return Err(io::Error::other(
            "TLS: the server did not agree to Postgres' protocol (ALPN), which sslnegotiation=direct needs",
        ));
    }
    Ok(Socket::Tls(Box::new(encrypted)))
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
