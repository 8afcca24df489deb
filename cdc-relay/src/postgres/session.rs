//! A session with Postgres that can start replication: signing in, simple queries, then the copy stream (`replication_stream`).
//!
//! Why not a client library: the server's CPU and ours depend on *when* the socket is read (late and in large
//! pieces under backlog, at once when idle), and on not copying rows between tasks. Nothing here acknowledges
//! anything by itself.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::{ChannelBinding as Binding, TargetSessionAttrs};

use crate::postgres::connection_url::Database;
use crate::postgres::replication_stream::Replication;
use crate::postgres::settings;
use crate::postgres::socket::{Socket, open};
use crate::postgres::sql;
use crate::postgres::utf8;

#[derive(Debug)]
pub enum WireError {
    Io(io::Error),
    /// The server said no.
    Server {
        code: String,
        message: String,
    },
    /// The server ended the stream with an error, and says where in the WAL it was if it was decoding.
    Stream {
        code: String,
        message: String,
    },
    Protocol(String),
}

impl WireError {
    /// The SQLSTATE, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } | Self::Stream { code, .. } => Some(code),
            Self::Io(_) | Self::Protocol(_) => None,
        }
    }

    /// Whether another host may be asked instead.
    fn is_of_this_host(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Server { code, .. } => code == NOT_NOW,
            Self::Stream { .. } | Self::Protocol(_) => false,
        }
    }

    /// Whether it could be otherwise without TLS: a handshake that failed, or a server that does not let in whoever
    /// comes by it.
    fn may_be_of_tls(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, TimedOut, WouldBlock};
        match self {
            Self::Io(error) => !matches!(error.kind(), ConnectionRefused | TimedOut | WouldBlock),
            Self::Server { code, .. } => code == NOT_LET_IN,
            Self::Stream { .. } | Self::Protocol(_) => false,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection to Postgres: {error}"),
            Self::Server { code, message } | Self::Stream { code, message } => {
                write!(f, "Postgres: {message} (SQLSTATE {code})")
            }
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

/// The SQLSTATE of a connection for which `pg_hba.conf` has no entry.
pub const NOT_LET_IN: &str = "28000";
/// The SQLSTATE of a server that starts, stops or recovers.
const NOT_NOW: &str = "57P03";

pub type Result<T> = std::result::Result<T, WireError>;

pub fn protocol<T>(what: &str) -> Result<T> {
    Err(WireError::Protocol(what.to_owned()))
}

/// From this version on `pgoutput` can send logical messages.
pub const MESSAGES: u32 = 14;

/// One row of a simple query's answer.
pub type Row = Vec<Option<String>>;

/// A session that answers queries; `start` turns it into a stream.
#[derive(Debug)]
pub struct Session {
    socket: Socket,
    input: BytesMut,
    /// Which of the URL's hosts it is at.
    place: usize,
    /// The server's process, and the secret that it is cancelled by.
    process: (i32, i32),
    /// The server's major version.
    version: u32,
    /// Statements that the server has planned.
    prepared: Vec<String>,
}

impl Session {
    /// Connects as a logical walsender of the URL's database.
    pub fn connect(database: &Database) -> Result<Session> {
        Session::open(database, &[("replication", "database"), ("application_name", "cdc-relay")])
    }

    /// Connects as any client does, to read rows in the very text forms that the stream has.
    pub fn connect_to_read(database: &Database) -> Result<Session> {
        Session::open(database, &[("application_name", "cdc-relay snapshot")])
    }

    /// At the first of the hosts that answers and is what is wanted.
    fn open(database: &Database, kind: &[(&str, &str)]) -> Result<Session> {
        let mut last = None;
        for place in 0..database.places().max(1) {
            match Session::open_at(database, place, kind) {
                Err(error) if error.is_of_this_host() => last = Some(error),
                done => return done,
            }
        }
        last.map_or_else(|| protocol("the URL names no host"), Err)
    }

    fn open_at(database: &Database, place: usize, kind: &[(&str, &str)]) -> Result<Session> {
        let mut session = match Session::sign_in((database, place), kind, true) {
            Err(error) if database.may_go_plain() && error.may_be_of_tls() => {
                Session::sign_in((database, place), kind, false)
            }
            done => done,
        }?;
        let wanted = match database.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => "off",
            TargetSessionAttrs::ReadOnly => "on",
            _ => return Ok(session),
        };
        let rows = session.query("show transaction_read_only")?;
        let found = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        if found == Some(wanted) {
            return Ok(session);
        }
        Err(io::Error::other("the server is not what target_session_attrs asks for").into())
    }

    fn sign_in(
        (database, place): (&Database, usize),
        kind: &[(&str, &str)],
        encrypt: bool,
    ) -> Result<Session> {
        let timeout = database.patience();
        let socket = open(database, place, timeout, encrypt)?;
        let (input, prepared) = (BytesMut::new(), Vec::new());
        let mut session = Session { socket, input, place, process: (0, 0), version: 0, prepared };
        session.socket.set_timeouts(timeout)?;
        // `Database` leaves neither open.
        let user = database.get_user().unwrap_or_default();
        let who = [("user", user), ("database", database.get_dbname().unwrap_or(user))];
        let options = database.get_options().map(|options| ("options", options));
        let mut out = BytesMut::new();
        let parameters = who.into_iter().chain(settings::AT_START).chain(kind.iter().copied());
        frontend::startup_message(parameters.chain(options), &mut out)?;
        session.socket.write_all(&out)?;
        session.authenticate(user, database)?;
        session.query(&settings::rest())?;
        // From here on only the server's own slowness counts.
        session.patience(SILENCE_MAX)?;
        Ok(session)
    }

    /// The server's major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The server's process.
    pub fn process(&self) -> i32 {
        self.process.0
    }

    /// How long the server may be silent.
    pub fn patience(&self, silence: Duration) -> Result<()> {
        Ok(self.socket.set_timeouts(silence)?)
    }

    fn authenticate(&mut self, user: &str, database: &Database) -> Result<()> {
        let password = database.get_password().unwrap_or_default();
        let required = database.get_channel_binding() == Binding::Require;
        let (mut scram, mut proved, mut signed_in) = (None, false, false);
        loop {
            let mut out = BytesMut::new();
            match self.message()? {
                // Only its signature, over the binding too, shows that it is the server.
                Message::AuthenticationOk if required && !proved => {
                    return protocol("channel_binding=require, and the server proves nothing");
                }
                Message::AuthenticationOk => signed_in = true,
                Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_)
                    if required =>
                {
                    return protocol("channel_binding=require, and the server asks for the password itself");
                }
                Message::AuthenticationCleartextPassword => frontend::password_message(password, &mut out)?,
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                }
                Message::AuthenticationSasl(body) => {
                    let offered = body.mechanisms().map(|name| Ok(name.to_owned())).collect::<Vec<_>>()?;
                    let end_point = self.socket.end_point();
                    let (mechanism, binding) =
                        mechanism(&offered, end_point, database.get_channel_binding())?;
                    let start = sasl::ScramSha256::new(password, binding);
                    frontend::sasl_initial_response(mechanism, start.message(), &mut out)?;
                    (scram, proved) = (Some(start), false);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL continued before it began") };
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let Some(scram) = &mut scram else { return protocol("SASL ended before it began") };
                    scram.finish(body.data())?;
                    proved = true;
                }
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                Message::ReadyForQuery(_) if signed_in => return Ok(()),
                Message::ParameterStatus(body) if body.name()? == "server_version" => {
                    self.version = major(body.value()?);
                }
                Message::BackendKeyData(body) => self.process = (body.process_id(), body.secret_key()),
                Message::ParameterStatus(_) | Message::NoticeResponse(_) => {}
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

    /// As `query`, for a statement that comes again: the server plans it once.
    pub fn query_prepared(&mut self, sql: &str) -> Result<Vec<Row>> {
        let known = self.prepared.iter().position(|known| known == sql);
        let number = known.unwrap_or(self.prepared.len());
        if known.is_none() {
            self.query(&format!("prepare cdc_relay_{number} as {sql}"))?;
            self.prepared.push(sql.to_owned());
        }
        self.query(&format!("execute cdc_relay_{number}"))
    }

    /// As `query`, for as long as it takes: while the server is silent it asks every `interval` whether to go on. `None`:
    /// not any more; then the session is of no further use.
    pub fn query_while(
        &mut self,
        sql: &str,
        interval: Duration,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Vec<Row>>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.socket.write_all(&out)?;
        self.patience(interval)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.message() {
                Ok(Message::DataRow(body)) => rows.push(row(&body)?),
                Ok(Message::ErrorResponse(body)) => failed = Some(server_error(body.fields())),
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(_) => {}
                Err(WireError::Io(error)) if is_silence(&error) => {
                    if !go_on() {
                        return Ok(None);
                    }
                }
                Err(error) => return failed.map_or(Err(error), Err),
            }
        }
        self.patience(SILENCE_MAX)?;
        failed.map_or(Ok(Some(rows)), Err)
    }

    /// Asks the server, by a connection for that alone, to give up what it does for this session.
    pub fn cancel(&self, database: &Database) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::cancel_request(self.process.0, self.process.1, &mut out);
        let encrypt = matches!(self.socket, Socket::Tls(_));
        let mut socket = open(database, self.place, database.patience(), encrypt)?;
        socket.set_timeouts(database.patience())?;
        socket.write_all(&out)?;
        socket.flush()?;
        // The server closes it when it has passed it on.
        let _ = socket.read(&mut [0]);
        Ok(())
    }

    /// Has the server parse a statement without running it. Several at once are refused.
    pub fn parse(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out)?;
        frontend::sync(&mut out);
        self.socket.write_all(&out)?;
        let mut failed = None;
        loop {
            match self.message()? {
                Message::ErrorResponse(body) => failed = Some(server_error(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(()), Err),
                _ => {}
            }
        }
    }

    /// Runs one statement and hands over its rows, one by one, as `pgoutput::data_row` reads them. Nothing is kept:
    /// the server waits for as long as `row` does. After an error the session is of no further use.
    pub fn each(
        &mut self,
        sql: &str,
        mut row: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.socket.write_all(&out)?;
        let mut failed = None;
        loop {
            match self.message()? {
                Message::DataRow(body) => row(body.buffer())?,
                Message::ErrorResponse(body) => failed = Some(server_error(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(()), |error| Err(error.into())),
                _ => {}
            }
        }
    }

    /// Begins streaming where the slot stands: 0/0 asks for no position, since the slot knows best. Logical
    /// messages come along from PostgreSQL 14 on: what commands ask of the relay has its place in the stream.
    pub fn start(mut self, slot: &str, publications: &[&str]) -> Result<Replication> {
        let (slot, publications) = (sql::replication_identifier(slot), sql::replication_names(publications));
        let messages = if self.version >= MESSAGES { ", messages 'true'" } else { "" };
        let sql = format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 \
             (proto_version '1', publication_names {publications}{messages})"
        );
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out)?;
        self.socket.write_all(&out)?;
        loop {
            // The copy-both answer has a tag that the library does not know.
            while self.input.is_empty() {
                self.fill()?;
            }
            if self.input.first() == Some(&b'W') {
                return Replication::begin(self.socket, self.input.to_vec());
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

/// How to sign in: tied to the server's certificate if both sides can.
fn mechanism(
    offered: &[String],
    end_point: Option<Vec<u8>>,
    wanted: Binding,
) -> Result<(&'static str, sasl::ChannelBinding)> {
    let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
    match end_point.filter(|_| wanted != Binding::Disable) {
        Some(end_point) if offers(sasl::SCRAM_SHA_256_PLUS) => {
            Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point)))
        }
        _ if wanted == Binding::Require => {
            protocol("channel_binding=require, and it cannot be had: no TLS, or the server cannot")
        }
        _ if !offers(sasl::SCRAM_SHA_256) => protocol("the server offers no SCRAM-SHA-256"),
        // Said aloud, so that nobody in between can take the better offer out of the list.
        Some(_) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// How long the server may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A read that brought nothing within the socket's time-out.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// `15.8 (Debian 15.8-1)` is 15; what cannot be read is old.
fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn row(body: &DataRowBody) -> Result<Row> {
    let bytes = body.buffer();
    let cell = |range: Option<Range<usize>>| {
        Ok(range.map(|range| utf8::owned(bytes.get(range).unwrap_or_default())))
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

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
