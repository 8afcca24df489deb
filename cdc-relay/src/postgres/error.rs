//! Why a session with Postgres ended, or a statement failed.

use std::fmt;
use std::io;

/// The SQLSTATE of a connection for which `pg_hba.conf` has no entry.
pub const INVALID_AUTHORIZATION: &str = "28000";
/// The SQLSTATE of a server that starts, stops or recovers.
const CANNOT_CONNECT_NOW: &str = "57P03";

#[derive(Debug)]
pub enum PostgresError {
    Io(io::Error),
    /// The server refused a statement or a connection.
    Server {
        code: String,
        message: String,
    },
    /// The server ended the stream with an error; the message names the position in the WAL if the server was decoding.
    Stream {
        code: String,
        message: String,
    },
    Protocol(String),
}

pub type Result<T> = std::result::Result<T, PostgresError>;

pub fn protocol<T>(problem: &str) -> Result<T> {
    Err(PostgresError::Protocol(problem.to_owned()))
}

impl PostgresError {
    /// The SQLSTATE, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } | Self::Stream { code, .. } => Some(code),
            Self::Io(_) | Self::Protocol(_) => None,
        }
    }

    /// Whether another host of the connection string may be tried instead.
    pub fn is_host_specific(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Server { code, .. } => code == CANNOT_CONNECT_NOW,
            Self::Stream { .. } | Self::Protocol(_) => false,
        }
    }

    /// Whether the connection might succeed without TLS: the handshake failed, or the server admits nobody who comes by
    /// TLS.
    pub fn may_be_due_to_tls(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, TimedOut, WouldBlock};
        match self {
            Self::Io(error) => !matches!(error.kind(), ConnectionRefused | TimedOut | WouldBlock),
            Self::Server { code, .. } => code == INVALID_AUTHORIZATION,
            Self::Stream { .. } | Self::Protocol(_) => false,
        }
    }
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection to Postgres: {error}"),
            Self::Server { code, message } | Self::Stream { code, message } => {
                write!(f, "Postgres: {message} (SQLSTATE {code})")
            }
            Self::Protocol(problem) => write!(f, "Postgres protocol: {problem}"),
        }
    }
}

impl std::error::Error for PostgresError {}

impl From<io::Error> for PostgresError {
    fn from(error: io::Error) -> PostgresError {
        PostgresError::Io(error)
    }
}
