//! Connects to Postgres with the password that holds now, so that it may be changed while the service runs.
//!
//! * A URL that came from a file is taken from that file again for each connection.
//! * The server and the file cannot be changed at the same moment. In between logins are refused, so a refused one is tried
//!   again, with the file as it is then, for `REFUSED_TIMEOUT`.
//! * Open connections outlive the password that they were made with.

use std::time::{Duration, Instant};

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use postgres_tls::Connection;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error};

use crate::telemetry::log_text;

/// Less than the pool allows for a connection.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
const REFUSED_INTERVAL: Duration = Duration::from_millis(100);

/// A database, and how to sign in there.
pub struct Login {
    /// As it was given at the start.
    url: String,
    /// It came from a file, which may be changed.
    may_change: bool,
    application_name: String,
    at_start: Connection,
}

impl Login {
    /// # Errors
    /// When the URL is malformed, or a certificate that it names cannot be read.
    pub fn new(url: &str, application_name: &str) -> anyhow::Result<Self> {
        let at_start = super::settings(url, application_name)?;
        Ok(Self {
            url: url.to_owned(),
            may_change: secret_files::origin(url).is_some(),
            application_name: application_name.to_owned(),
            at_start,
        })
    }

    /// As it was at the start.
    pub fn config(&self) -> Config {
        self.at_start.config.clone()
    }

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

    async fn open(&self) -> Result<(Client, JoinHandle<()>), Error> {
        let began = Instant::now();
        loop {
            let Connection { config, tls } = self.current();
            match config.connect(tls).await {
                Ok((client, connection)) => {
                    let driven = tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::warn!("the connection to the database ended: {error}");
                        }
                    });
                    return Ok((client, driven));
                }
                Err(error) if self.may_change && is_refused(&error) && began.elapsed() < REFUSED_TIMEOUT => {
                    tokio::time::sleep(REFUSED_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Connect for Login {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        Box::pin(self.open())
    }
}

/// Whether the server does not take the password. A wrong one in the configuration looks the same: it is said two seconds later.
fn is_refused(error: &Error) -> bool {
    error.code() == Some(&SqlState::INVALID_PASSWORD)
}
