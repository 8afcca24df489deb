//! Connects to Postgres with the password that holds now, so that it may be changed while the service runs.
//!
//! * A URL that came from a file is taken from that file again for each connection.
//! * The server and the file cannot be changed at the same moment. In between logins are refused, so a refused one is tried
//!   again, with the file as it is then, for `REFUSED_TIMEOUT`.
//! * Open connections outlive the password that they were made with.
//! * Of several hosts each has a time of its own for its whole answer, and the one that answered last is tried first.
//! * With `target_session_attrs=read-write` the pool stays with the host that takes writes (`leader`, `watch`). A single host is taken as
//!   it is.
//! * A commit whose wait for a synchronous standby was cancelled is done on the primary, and a promotion may undo it. The server
//!   says so in a notice and then reports success. The connection ends with the notice, before the success: to its caller the
//!   outcome of the commit is not known, as after a lost connection. The next connection tries the other hosts first: this one may
//!   be a primary that nobody follows any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::poll_fn;
use postgres_tls::hosts::{self, Opened, Preferred};
use postgres_tls::{Connection, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{AsyncMessage, Config, Error};

use super::doubt::Doubt;
use super::leader::Leader;
use crate::telemetry::log_text;

/// The function of the server that waits for synchronous standbys. A notice names its function in every language.
const WAIT_FOR_STANDBYS: &str = "SyncRepWaitForLSN";

/// Less than the pool allows for a connection.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
const REFUSED_INTERVAL: Duration = Duration::from_millis(100);

/// A database, and how to sign in there.
pub struct Login(pub(super) Arc<Inner>);

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
        let hosts = u32::try_from(self.0.hosts()).unwrap_or(1);
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

    /// Connects. Nobody drives the connection yet.
    pub async fn connect(&self) -> Result<Opened<Stream>, Error> {
        let began = Instant::now();
        loop {
            let Connection { config, tls } = self.current();
            match hosts::connect(&config, &tls, &self.preferred, super::CONNECT_TIMEOUT).await {
                Err(error) if self.may_change && is_refused(&error) && began.elapsed() < REFUSED_TIMEOUT => {
                    tokio::time::sleep(REFUSED_INTERVAL).await;
                }
                connected => return connected,
            }
        }
    }

    /// The same, to this host alone.
    pub async fn connect_to(&self, host: usize) -> Result<Opened<Stream>, Error> {
        let Connection { config, tls } = self.current();
        hosts::connect_to(&config, &tls, super::CONNECT_TIMEOUT, host).await
    }

    /// The number of hosts of the URL.
    pub fn hosts(&self) -> usize {
        hosts::count(&self.at_start.config)
    }

    /// This host is tried first from now on.
    pub fn prefer(&self, host: usize) {
        self.preferred.succeeded(host);
    }

    /// Drives a connection to its end. Whoever waits for an answer learns of the end when the connection is dropped.
    pub async fn drive<S, T>(self: Arc<Self>, mut connection: tokio_postgres::Connection<S, T>, host: usize)
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
                    self.preferred.failed(host, self.hosts());
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
    pub fn has_other_hosts(&self) -> bool {
        self.hosts() > 1 && self.at_start.config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite
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
