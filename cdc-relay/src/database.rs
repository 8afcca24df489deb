//! A database as a user names it: one connection string, with TLS as libpq's parameters in it ask for.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::settings;
use crate::tls::{self, Mode};
use crate::wire::NOT_LET_IN;

const CONNECT: Duration = Duration::from_secs(10);

/// A parsed connection string. Whoever connects with it connects encrypted if it says so.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: Arc<ClientConfig>,
}

impl FromStr for Database {
    type Err = anyhow::Error;

    /// # Errors
    /// When it is none, or names certificates that cannot be read.
    fn from_str(text: &str) -> Result<Database> {
        let (rest, wish) = tls::take(text)?;
        let mut config: Config = rest
            .parse()
            .context("the connection string is not usable (postgres://user:password@host:port/database)")?;
        let mode = wish.mode(match config.get_ssl_mode() {
            SslMode::Disable => Some(Mode::Disable),
            SslMode::Prefer => None,
            _ => Some(Mode::Require),
        })?;
        let direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        ensure!(!direct || mode > Mode::Prefer, "sslnegotiation=direct goes with sslmode=require or more");
        // A local socket has no need of it, and no name to check.
        let hosts = config.get_hosts();
        let local = config.get_hostaddrs().is_empty()
            && !hosts.is_empty()
            && hosts.iter().all(|host| matches!(host, Host::Unix(_)));
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            _ if local => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        // The client library would wait for as long as it takes.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        config.application_name("cdc-relay");
        Ok(Database { tls: Arc::new(tls::client(mode, &wish)?), config })
    }
}

impl Deref for Database {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

/// Host, port, user and database, without the password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(folder)) => folder.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.get_ports().first().copied().unwrap_or(5432);
        let user = self.get_user().unwrap_or("postgres");
        write!(f, "{user}@{host}:{port}/{}", self.get_dbname().unwrap_or(user))
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

impl Database {
    /// How long connecting, and each step of signing in, may take.
    pub fn patience(&self) -> Duration {
        self.get_connect_timeout().copied().unwrap_or(CONNECT)
    }

    /// How to encrypt, where `get_ssl_mode` says that.
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// Whether what TLS stands in the way of is tried without it.
    pub fn may_go_plain(&self) -> bool {
        self.get_ssl_mode() == SslMode::Prefer && self.get_channel_binding() != ChannelBinding::Require
    }

    /// An ordinary connection, which lives as long as the client.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn connect(&self) -> Result<Client> {
        let done = match self.connect_by(&self.config).await {
            Err(error) if self.may_go_plain() && may_be_of_tls(&error) => {
                let mut plain = self.config.clone();
                plain.ssl_mode(SslMode::Disable);
                self.connect_by(&plain).await
            }
            done => done,
        };
        done.with_context(|| format!("cannot connect to {self}"))
    }

    async fn connect_by(&self, config: &Config) -> Result<Client, tokio_postgres::Error> {
        let tls = MakeRustlsConnect::new((*self.tls).clone());
        let mut config = config.clone();
        config.options(settings::options(config.get_options()));
        let (client, connection) = config.connect(tls).await?;
        tokio::spawn(connection);
        client.simple_query(&settings::rest()).await?;
        Ok(client)
    }
}

fn may_be_of_tls(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| code.code() == NOT_LET_IN)
}
