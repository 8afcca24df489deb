//! Connects to Postgres with the password that holds now, so that it may be changed while the service runs.
//!
//! * A URL that came from a file is taken from that file again for each connection.
//! * The server and the file cannot be changed at the same moment. In between logins are refused, so a refused one is tried
//!   again, with the file as it is then, for `REFUSED_TIMEOUT`.
//! * Open connections outlive the password that they were made with.
//! * Of several hosts each has a time of its own for its whole answer, and the one that answered last is tried first.
//! * With `target_session_attrs=read-write` the host of the connections is asked every [`PROBE_INTERVAL`], on a connection of its own. If it
//!   does not answer, the others are tried, every [`SEARCH_INTERVAL`], and `leader` leaves it once another takes writes. A host that is
//!   slow while no other takes writes keeps its connections. A single host is not watched.
//! * A host may answer, and be a primary that its standbys have left for another one. Its commits then wait for ever: `statement_timeout`
//!   does not count while one waits for standbys. So the others are tried while a commit of ours waits for longer than 3 s ([`PROBE`]), and
//!   the host is left for one that was promoted after it. That is one on a later timeline: two that are cut off from each other may both
//!   take writes.
//! * A commit whose wait for a synchronous standby was cancelled is done on the primary, and a promotion may undo it. The server
//!   says so in a notice and then reports success. The connection ends with the notice, before the success: to its caller the
//!   outcome of the commit is not known, as after a lost connection. The next connection tries the other hosts first: this one may
//!   be a primary that nobody follows any more.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use deadpool_postgres::Connect;
use futures_util::future::{BoxFuture, poll_fn};
use postgres_tls::Connection;
use postgres_tls::hosts::{self, Opened, Preferred};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, Error, SimpleQueryMessage};

use super::doubt::Doubt;
use super::leader::Leader;
use crate::telemetry::log_text;

/// The function of the server that waits for synchronous standbys. A notice names its function in every language.
const WAIT_FOR_STANDBYS: &str = "SyncRepWaitForLSN";

/// Less than the pool allows for a connection.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
const REFUSED_INTERVAL: Duration = Duration::from_millis(100);

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// While no host takes writes. One of them is about to: nothing is accepted until it is found.
const SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// A host that takes longer is taken for frozen, and the others are tried.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A row where a commit of ours has waited for its standbys for so long that they may have left the host.
const PROBE: &str = "
    select from pg_stat_activity
     where usename = current_user and datname = current_database()
       and wait_event = 'SyncRep' and clock_timestamp() - query_start > '3 s'
     limit 1";

/// As eight hexadecimal digits, which are in the order of their numbers.
const TIMELINE: &str = "select left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)";

/// A database, and how to sign in there.
pub struct Login(Arc<Inner>);

pub(super) struct Inner {
    /// As it was given at the start.
    url: String,
    /// It came from a file, which may be changed.
    may_change: bool,
    application_name: String,
    at_start: Connection,
    preferred: Preferred,
    pub leader: Leader,
    doubt: Arc<Doubt>,
}

impl Login {
    /// # Errors
    /// When the URL is malformed, or a certificate that it names cannot be read.
    pub fn new(url: &str, application_name: &str) -> anyhow::Result<Self> {
        let at_start = super::settings(url, application_name)?;
        Ok(Self(Arc::new(Inner {
            url: url.to_owned(),
            may_change: secret_files::origin(url).is_some(),
            application_name: application_name.to_owned(),
            at_start,
            preferred: Preferred::default(),
            leader: Leader::default(),
            doubt: Arc::default(),
        })))
    }

    /// As it was at the start.
    pub fn config(&self) -> Config {
        self.0.at_start.config.clone()
    }

    /// Arises with each connection that is lost.
    pub fn doubt(&self) -> Arc<Doubt> {
        Arc::clone(&self.0.doubt)
    }

    /// The time for a connection: each host may need its own.
    pub fn connect_timeout(&self) -> Duration {
        let hosts = u32::try_from(hosts::count(&self.0.at_start.config)).unwrap_or(1);
        super::CONNECT_TIMEOUT * hosts
    }
}

impl Inner {
    /// As it is now.
    fn current(&self) -> Connection {
        let url = secret_files::current(&self.url);
        if url == self.url {
            return self.at_start.clone();
        }
        super::settings(&url, &self.application_name).unwrap_or_else(|error| {
            tracing::warn!(error = log_text(&error), "the file of the database URL cannot be used any more");
            self.at_start.clone()
        })
    }

    /// Connects; returns the task that drives the connection, and the host.
    pub async fn connect(self: &Arc<Self>) -> Result<(Client, JoinHandle<()>, usize), Error> {
        let began = Instant::now();
        loop {
            let Connection { config, tls } = self.current();
            match hosts::connect(&config, &tls, &self.preferred, super::CONNECT_TIMEOUT).await {
                Ok(Opened { client, connection, host }) => {
                    let driven = tokio::spawn(Arc::clone(self).drive(connection, host));
                    return Ok((client, driven, host));
                }
                Err(error) if self.may_change && is_refused(&error) && began.elapsed() < REFUSED_TIMEOUT => {
                    tokio::time::sleep(REFUSED_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection to the host that takes writes. A host that does not answer is no error of ours: callers say so.
    async fn search(self: &Arc<Self>) -> Option<(Client, usize)> {
        let (client, _, host) = self.connect().await.ok()?;
        Some((client, host))
    }

    /// A connection to a host that takes writes, and was promoted after this one.
    async fn search_promoted(self: &Arc<Self>, before: &Client, host: usize) -> Option<(Client, usize)> {
        let Connection { config, tls } = self.current();
        let found = hosts::connect_elsewhere(&config, &tls, super::CONNECT_TIMEOUT, host).await;
        let Opened { client, connection, host } = found.ok()?;
        tokio::spawn(Arc::clone(self).drive(connection, host));
        let timelines = async { Some((timeline(before).await?, timeline(&client).await?)) };
        let (before, found) = timeout(PROBE_TIMEOUT, timelines).await.ok()??;
        if found <= before {
            return None;
        }
        // Connections that are opened from now on go there too.
        self.preferred.succeeded(host);
        Some((client, host))
    }

    /// Drives a connection to its end. Whoever waits for an answer learns of the end when the connection is dropped.
    async fn drive<S, T>(self: Arc<Self>, mut connection: tokio_postgres::Connection<S, T>, host: usize)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        // Also if this task is aborted. A local is dropped before the connection, which is a parameter.
        let _doubt = self.doubt.at_end();
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) if is_unreplicated(&notice) => {
                    tracing::warn!(
                        "a commit did not wait for a synchronous standby to its end, so its outcome is not known: {}",
                        notice.message()
                    );
                    // Its standbys may follow another host by now.
                    self.preferred.failed(host, hosts::count(&self.at_start.config));
                    return;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!("the connection to the database ended: {error}");
                    return;
                }
                None => return,
            }
        }
    }

    /// Whether another of its hosts may take writes later.
    fn has_other_hosts(&self) -> bool {
        let config = &self.at_start.config;
        hosts::count(config) > 1 && config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite
    }
}

async fn open(login: Arc<Inner>) -> Result<(Client, JoinHandle<()>), Error> {
    let (client, driven, host) = login.connect().await?;
    if login.has_other_hosts() && login.leader.opened(host, driven.abort_handle()) {
        watch(&login);
    }
    Ok((client, driven))
}

/// Watches the host until the pool is gone, or has no connection.
fn watch(login: &Arc<Inner>) {
    tokio::spawn(probe_repeatedly(Arc::downgrade(login)));
}

async fn probe_repeatedly(login: Weak<Inner>) {
    let mut probe: Option<(Client, usize)> = None;
    loop {
        sleep(if probe.is_some() { PROBE_INTERVAL } else { SEARCH_INTERVAL }).await;
        let Some(login) = login.upgrade() else { return };
        if login.leader.ends() {
            return;
        }
        // A connection that was being opened may have led back to the host before.
        let asked = probe.take().filter(|(_, host)| login.leader.host() == Some(*host));
        probe = match asked {
            Some((client, host)) => match ask(&client).await {
                HostState::TakesWrites => Some((client, host)),
                HostState::WaitsForStandbys => {
                    login.search_promoted(&client, host).await.or(Some((client, host)))
                }
                HostState::DoesNotAnswer => login.search().await,
            },
            None => login.search().await,
        };
        if let Some((_, host)) = &probe {
            login.leader.found(*host);
        }
    }
}

/// What a host is like.
enum HostState {
    TakesWrites,
    /// It answers, and commits do not end.
    WaitsForStandbys,
    DoesNotAnswer,
}

async fn ask(client: &Client) -> HostState {
    let Ok(Ok(answer)) = timeout(PROBE_TIMEOUT, client.simple_query(PROBE)).await else {
        return HostState::DoesNotAnswer;
    };
    match answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
        true => HostState::WaitsForStandbys,
        false => HostState::TakesWrites,
    }
}

/// The timeline that a host writes.
async fn timeline(client: &Client) -> Option<String> {
    let answer = client.simple_query(TIMELINE).await.ok()?;
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

impl Connect for Login {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        Box::pin(open(Arc::clone(&self.0)))
    }
}

/// Whether a commit is done on the primary, and perhaps nowhere else.
fn is_unreplicated(notice: &DbError) -> bool {
    notice.routine() == Some(WAIT_FOR_STANDBYS)
}

/// Whether the server does not take the password. A wrong one in the configuration looks the same: it is said two seconds later.
fn is_refused(error: &Error) -> bool {
    error.code() == Some(&SqlState::INVALID_PASSWORD)
}
