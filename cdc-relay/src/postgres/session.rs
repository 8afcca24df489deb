//! A session with Postgres: connects, signs in, and runs statements; a replication stream takes it over.
//!
//! * Nothing here acknowledges anything by itself.
//! * The caller decides when the socket is read. Under backlog late reads of large pieces spare the server's CPU and ours;
//!   when idle a read follows at once. No client library offers that.
//! * No row is copied between tasks.

mod sign_in;

use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::TargetSessionAttrs;

use crate::postgres::connection_url::Database;
use crate::postgres::error::{PostgresError, Result, protocol};
use crate::postgres::server_identity::{self, ServerIdentity};
use crate::postgres::settings;
use crate::postgres::socket::{Socket, open};
use crate::postgres::utf8;

/// The first major version whose `pgoutput` sends logical messages.
pub const LOGICAL_MESSAGES_VERSION: u32 = 14;
/// How long the server may be silent in the middle of an answer.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);

/// How the relay's walsender introduces itself.
const WALSENDER: [(&str, &str); 2] = [("replication", "database"), ("application_name", "cdc-relay")];

/// One row of a simple query's answer.
pub type Row = Vec<Option<String>>;

/// A session that answers queries.
#[derive(Debug)]
pub struct Session {
    socket: Socket,
    input: BytesMut,
    /// The index of the connected host among those of the connection string.
    host: usize,
    backend: Backend,
    /// The server's major version.
    version: u32,
    /// Statements that the server has planned.
    prepared: Vec<String>,
}

/// The server's process, and the secret that a cancel request needs.
#[derive(Debug, Clone, Copy, Default)]
struct Backend {
    process_id: i32,
    secret_key: i32,
}

impl Session {
    /// Connects as a logical walsender of the URL's database.
    pub fn connect(database: &Database) -> Result<Session> {
        Session::open(database, &WALSENDER, database.primary().as_ref())
    }

    /// Like `connect`, also to a former primary: the caller compares the server with the checkpoint itself.
    pub fn connect_to_any(database: &Database) -> Result<Session> {
        Session::open(database, &WALSENDER, None)
    }

    /// Connects as an ordinary client. Rows of its queries have the same text forms as the stream's.
    pub fn connect_to_read(database: &Database) -> Result<Session> {
        Session::open(database, &[("application_name", "cdc-relay snapshot")], database.primary().as_ref())
    }

    /// Connects to the first host that answers, has the requested `target_session_attrs`, and was not the primary before this one.
    fn open(database: &Database, kind: &[(&str, &str)], primary: Option<&ServerIdentity>) -> Result<Session> {
        let (mut last, count) = (None, database.host_count().max(1));
        for host in database.preferred().order(count) {
            let opened = Session::open_host(database, host, kind);
            match opened.and_then(|session| session.unless_former(primary)) {
                Err(error) if error.is_host_specific() => {
                    database.preferred().failed(host, count);
                    last = Some(error);
                }
                Err(error) => return Err(error),
                Ok(session) => {
                    database.preferred().succeeded(host);
                    return Ok(session);
                }
            }
        }
        last.map_or_else(|| protocol("the URL names no host"), Err)
    }

    fn open_host(database: &Database, host: usize, kind: &[(&str, &str)]) -> Result<Session> {
        let mut session = match Session::sign_in(database, host, kind, true) {
            Err(error) if database.allows_plaintext() && error.may_be_due_to_tls() => {
                Session::sign_in(database, host, kind, false)
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

    /// Returns the session, unless its server was the primary before this one.
    fn unless_former(mut self, primary: Option<&ServerIdentity>) -> Result<Session> {
        let Some(primary) = primary else { return Ok(self) };
        let rows = self.query(server_identity::QUERY)?;
        let Some(found) = rows.first().and_then(|row| ServerIdentity::read(row)) else {
            return protocol("the server did not say which timeline it is on");
        };
        if primary.succeeds(&found) {
            return Err(io::Error::other(primary.former(&found)).into());
        }
        Ok(self)
    }

    fn sign_in(database: &Database, host: usize, kind: &[(&str, &str)], encrypt: bool) -> Result<Session> {
        let timeout = database.step_timeout();
        let socket = open(database, host, timeout, encrypt)?;
        let (input, prepared) = (BytesMut::new(), Vec::new());
        let mut session = Session { socket, input, host, backend: Backend::default(), version: 0, prepared };
        session.socket.set_timeouts(timeout)?;
        // `Database` fills in both.
        let user = database.get_user().unwrap_or_default();
        let login = [("user", user), ("database", database.get_dbname().unwrap_or(user))];
        let options = database.get_options().map(|options| ("options", options));
        let mut out = BytesMut::new();
        let parameters = login.into_iter().chain(settings::AT_START).chain(kind.iter().copied());
        frontend::startup_message(parameters.chain(options), &mut out)?;
        session.socket.write_all(&out)?;
        session.authenticate(user, database)?;
        session.query(&settings::after_sign_in())?;
        // From here on only the server's own slowness counts.
        session.set_silence_timeout(SILENCE_TIMEOUT)?;
        Ok(session)
    }

    /// The server's major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The id of the server's process.
    pub fn process(&self) -> i32 {
        self.backend.process_id
    }

    /// Sets how long the server may be silent.
    pub fn set_silence_timeout(&self, silence: Duration) -> Result<()> {
        Ok(self.socket.set_timeouts(silence)?)
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

    /// As `query`, for a repeated statement: the server plans it once.
    pub fn query_prepared(&mut self, sql: &str) -> Result<Vec<Row>> {
        let known = self.prepared.iter().position(|known| known == sql);
        let number = known.unwrap_or(self.prepared.len());
        if known.is_none() {
            self.query(&format!("prepare cdc_relay_{number} as {sql}"))?;
            self.prepared.push(sql.to_owned());
        }
        self.query(&format!("execute cdc_relay_{number}"))
    }

    /// As `query`, without a time-out. While the server is silent, `go_on` decides every `interval` whether to wait on. `None`:
    /// it decided to stop, and the session is unusable.
    pub fn query_while(
        &mut self,
        sql: &str,
        interval: Duration,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Vec<Row>>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.socket.write_all(&out)?;
        self.set_silence_timeout(interval)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.message() {
                Ok(Message::DataRow(body)) => rows.push(row(&body)?),
                Ok(Message::ErrorResponse(body)) => failed = Some(server_error(body.fields())),
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(_) => {}
                Err(PostgresError::Io(error)) if is_silence(&error) => {
                    if !go_on() {
                        return Ok(None);
                    }
                }
                Err(error) => return failed.map_or(Err(error), Err),
            }
        }
        self.set_silence_timeout(SILENCE_TIMEOUT)?;
        failed.map_or(Ok(Some(rows)), Err)
    }

    /// Asks the server, on a connection of its own, to cancel this session's statement.
    pub fn cancel(&self, database: &Database) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::cancel_request(self.backend.process_id, self.backend.secret_key, &mut out);
        let encrypt = matches!(self.socket, Socket::Tls(_));
        let mut socket = open(database, self.host, database.step_timeout(), encrypt)?;
        socket.set_timeouts(database.step_timeout())?;
        socket.write_all(&out)?;
        socket.flush()?;
        // The server closes the connection once it has passed the request on.
        let _ = socket.read(&mut [0]);
        Ok(())
    }

    /// Has the server parse a statement without running it. The server refuses several statements at once.
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

    /// Runs one statement and passes its rows to `row` one by one, in the form that `pgoutput::data_row` reads. No row is
    /// buffered: a slow `row` holds up the server. After an error the session is unusable.
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

    /// Runs a command that the server answers with a two-way copy. Returns the socket and the bytes that are read already,
    /// the copy's first message among them.
    pub fn into_copy_both(mut self, command: &str) -> Result<(Socket, Vec<u8>)> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.socket.write_all(&out)?;
        loop {
            while self.input.is_empty() {
                self.fill()?;
            }
            // The library does not know the tag of a two-way copy.
            if self.input.first() == Some(&b'W') {
                return Ok((self.socket, self.input.to_vec()));
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

/// Whether a read timed out.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn row(body: &DataRowBody) -> Result<Row> {
    let bytes = body.buffer();
    let cell = |range: Option<Range<usize>>| {
        Ok(range.map(|range| utf8::owned(bytes.get(range).unwrap_or_default())))
    };
    Ok(body.ranges().map(cell).collect()?)
}

fn server_error(mut fields: ErrorFields<'_>) -> PostgresError {
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    PostgresError::Server { code, message }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
