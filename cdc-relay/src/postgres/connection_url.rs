//! The connection string of a database.
//!
//! * A string has libpq's meaning, for every connection that the relay opens.
//! * A missing part has libpq's default. One differs: of several hosts one that takes writes is meant, also by `any`.
//! * Of several hosts none that was the primary before the checkpoint's server will do, once the checkpoint is known.
//! * Where the string came from a file, a session signs in with the password that the file has then.
//! * No text shows the password.

pub(crate) mod parameters;
mod passfile;

use std::fmt::{self, Write as _};
use std::ops::Deref;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use postgres_tls::hosts::{self, Opened, Preferred};
use postgres_tls::{Mode, TlsParameters};
use rustls::ClientConfig;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use self::parameters::Parameters;
use self::passfile::Login;
use crate::postgres::error::INVALID_AUTHORIZATION;
use crate::postgres::server_identity::ServerIdentity;
use crate::postgres::settings;

/// The default time-out of connecting: to the only host, and to each of several. One that is frozen must not use up the time of
/// those that watch the stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT_PER_HOST: Duration = Duration::from_secs(3);

/// A parsed connection string, with its TLS configuration.
#[derive(Clone)]
pub struct Database {
    /// As it was given at the start.
    text: Arc<str>,
    config: Config,
    tls: Arc<ClientConfig>,
    /// Of several hosts, the one that is tried first.
    preferred: Arc<Preferred>,
    /// Of several hosts, none that was the primary before this server will do. All connections share it.
    primary: Arc<Mutex<Option<ServerIdentity>>>,
}

impl FromStr for Database {
    type Err = anyhow::Error;

    /// # Errors
    /// When the text is no connection string, asks for something unsupported, or names unreadable certificates.
    fn from_str(text: &str) -> Result<Database> {
        let parameters = parameters::read(text, &|name| std::env::var(name).ok());
        let parameters = parameters.context("the connection string is not usable")?;
        Database::new(text, complete(parameters)?)
    }
}

/// Fills in libpq's defaults: the operating system's user, a database of that name, a local server, and the password file's
/// password.
fn complete(mut parameters: Parameters) -> Result<Parameters> {
    let user = match parameters.get("user") {
        Some(user) => user.clone(),
        None => whoami::username().context("no `user` is given, and the operating system has no name for ours: name one in the connection string")?,
    };
    let first = |name: &str| Some(parameters.get(name)?.split(',').next()?.to_owned());
    let port = first("port").filter(|port| !port.is_empty()).unwrap_or_else(|| "5432".to_owned());
    let host = first("host").or_else(|| first("hostaddr")).unwrap_or_else(|| default_host(&port));
    let database = parameters.get("dbname").unwrap_or(&user).clone();
    if !parameters.contains_key("password") {
        // A folder means a local server.
        let host = if host.starts_with('/') { "localhost" } else { &host };
        let login = Login { host, port: &port, database: &database, user: &user };
        let home = std::env::home_dir().map(|home| home.display().to_string());
        let file = parameters.get("passfile").map(String::as_str);
        if let Some(password) = passfile::password(file, home, login) {
            parameters.insert("password".to_owned(), password);
        }
    }
    if !parameters.contains_key("host") && !parameters.contains_key("hostaddr") {
        parameters.insert("host".to_owned(), host);
    }
    parameters.insert("user".to_owned(), user);
    parameters.insert("dbname".to_owned(), database);
    Ok(parameters)
}

/// The folder of a local server's socket; libpq is built for either of two.
fn default_host(port: &str) -> String {
    let listens = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    ["/var/run/postgresql", "/tmp"]
        .iter()
        .find(|folder| listens(folder))
        .map_or("localhost", |folder| folder)
        .to_owned()
}

impl Database {
    /// Builds the connection from complete parameters.
    fn new(text: &str, mut parameters: Parameters) -> Result<Database> {
        let tls_parameters = TlsParameters::take(&mut parameters)?;
        let mode = tls_parameters.mode()?;
        let mut config = config(&parameters)?;
        let direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        ensure!(!direct || mode > Mode::Prefer, "sslnegotiation=direct goes with sslmode=require or more");
        // A local socket needs no TLS, and has no name to check.
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
        // The client library has no time-out of its own.
        if config.get_connect_timeout().is_none() {
            let several = hosts::count(&config) > 1;
            config.connect_timeout(if several { CONNECT_TIMEOUT_PER_HOST } else { CONNECT_TIMEOUT });
        }
        // A standby among several hosts must not pass for the primary. One host stays what the user says it is.
        if hosts::count(&config) > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.application_name("cdc-relay");
        let tls = Arc::new(postgres_tls::client(mode, &tls_parameters)?);
        Ok(Database { text: text.into(), tls, config, preferred: Arc::default(), primary: Arc::default() })
    }
}

/// The client library's configuration. It reads the keyword/value form as libpq does.
fn config(parameters: &Parameters) -> Result<Config> {
    let mut text = String::new();
    for (name, value) in parameters.iter().filter(|(name, _)| *name != "passfile") {
        let (name, value) = match (name.as_str(), value.as_str()) {
            ("keepalives_count", value) => ("keepalives_retries", value),
            // A server that accepts writes is no standby.
            ("target_session_attrs", "primary") => ("target_session_attrs", "read-write"),
            ("target_session_attrs", "standby" | "prefer-standby") => {
                bail!(
                    "target_session_attrs={value} is not supported here: slots are made and read on the primary"
                )
            }
            pair => pair,
        };
        // Writing into a String cannot fail.
        let _ = write!(text, "{name}='{}' ", value.replace('\\', r"\\").replace('\'', r"\'"));
    }
    text.parse().context("the connection string is not usable")
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
    /// Of several hosts, the one that is tried first: by all connections, so that none waits for a frozen one again.
    pub fn preferred(&self) -> &Preferred {
        &self.preferred
    }

    /// The next connection tries the other hosts before the one that answered last.
    pub fn try_others(&self) {
        let count = self.host_count().max(1);
        if let Some(first) = self.preferred.order(count).next() {
            self.preferred.failed(first, count);
        }
    }

    /// From now on none of several hosts will do that was the primary before this server, the checkpoint's. `None`: any will. A
    /// single host is the one that is meant, whatever it is.
    pub fn keep_to(&self, primary: Option<ServerIdentity>) {
        if self.host_count() > 1 {
            *self.kept() = primary;
        }
    }

    /// The server of `keep_to`. A connection that is kept for long was opened under another one if this has changed.
    pub fn primary(&self) -> Option<ServerIdentity> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, Option<ServerIdentity>> {
        // The guarded value is valid after any panic.
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time-out of connecting, and of each step of signing in.
    pub fn step_timeout(&self) -> Duration {
        self.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }

    /// The password that holds now.
    pub fn current_password(&self) -> Vec<u8> {
        let text = secret_files::current(&self.text);
        let other = if *text == *self.text { None } else { text.parse::<Database>().ok() };
        other.as_ref().unwrap_or(self).get_password().unwrap_or_default().to_vec()
    }

    /// The number of hosts; a session connects to one of them.
    pub fn host_count(&self) -> usize {
        self.get_hosts().len().max(self.get_hostaddrs().len())
    }

    /// The TLS configuration, for connections that `get_ssl_mode` encrypts.
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// Whether a connection that fails with TLS is tried without it.
    pub fn allows_plaintext(&self) -> bool {
        self.get_ssl_mode() == SslMode::Prefer && self.get_channel_binding() != ChannelBinding::Require
    }

    /// Opens an ordinary connection. It lives as long as the client.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, or only a former primary can be reached.
    pub async fn connect(&self) -> Result<Client> {
        let Some(primary) = self.primary() else { return Ok(self.connect_to_any().await?.0) };
        let (count, mut former) = (self.host_count(), String::new());
        for _ in 0..count {
            let (client, host) = self.connect_to_any().await?;
            let found = ServerIdentity::of(&client).await?;
            if !primary.succeeds(&found) {
                return Ok(client);
            }
            self.preferred.failed(host, count);
            former = primary.former(&found);
        }
        Err(Error::msg(former))
    }

    /// Connects to any host that will do. Returns its index too.
    async fn connect_to_any(&self) -> Result<(Client, usize)> {
        let done = match self.connect_by(&self.config).await {
            Err(error) if self.allows_plaintext() && may_be_due_to_tls(&error) => {
                let mut plain = self.config.clone();
                plain.ssl_mode(SslMode::Disable);
                self.connect_by(&plain).await
            }
            done => done,
        };
        done.with_context(|| format!("cannot connect to {self}"))
    }

    async fn connect_by(&self, config: &Config) -> Result<(Client, usize), tokio_postgres::Error> {
        let tls = MakeRustlsConnect::new((*self.tls).clone());
        let mut config = config.clone();
        config.options(settings::options(config.get_options()));
        if config.get_password().is_some() {
            config.password(self.current_password());
        }
        let opened = hosts::connect(&config, &tls, &self.preferred, self.step_timeout()).await?;
        let Opened { client, connection, host } = opened;
        tokio::spawn(connection);
        client.simple_query(&settings::after_sign_in()).await?;
        Ok((client, host))
    }
}

fn may_be_due_to_tls(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| code.code() == INVALID_AUTHORIZATION)
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use postgres_tls::{Mode, TlsParameters};

    use super::parameters;

    fn tls_parameters(url: &str) -> Result<TlsParameters> {
        TlsParameters::take(&mut parameters::read(url, &|_| None)?)
    }

    fn mode(url: &str) -> Option<Mode> {
        tls_parameters(url).expect("a URL").mode().ok()
    }

    #[test]
    fn a_session_signs_in_with_the_password_that_the_file_has_then() {
        let file = std::env::temp_dir().join(format!("cdc-relay-url-{}", std::process::id()));
        std::fs::write(&file, "postgres://u:one@h/d").unwrap();
        let url = secret_files::take("SHOP_URL_FILE", &file).unwrap();
        let database: super::Database = url.parse().unwrap();
        assert_eq!(database.current_password(), b"one");
        for (content, password) in [("postgres://u:two@h/d\n", "two"), ("no connection string=", "one")] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(database.current_password(), password.as_bytes(), "{content}");
        }
        std::fs::remove_file(&file).unwrap();
    }

    /// A restore may begin a lower timeline, and a single host must be refused for it, not left.
    #[test]
    fn only_of_several_hosts_a_former_primary_is_left_and_by_all_who_share_the_connection_string() {
        let primary = super::ServerIdentity { system_id: "1".to_owned(), timeline: 2 };
        for (url, expected) in [("postgres://u@a/d", None), ("postgres://u@a,b/d", Some(primary.clone()))] {
            let database: super::Database = url.parse().expect(url);
            let other = database.clone();
            database.keep_to(Some(primary.clone()));
            assert_eq!(other.primary(), expected, "{url}");
            other.keep_to(None);
            assert_eq!(database.primary(), None, "{url}");
        }
    }

    /// The time-outs of those that watch the stream leave time for one frozen host and another one.
    #[test]
    fn each_of_several_hosts_has_less_time() {
        for (url, seconds) in [
            ("postgres://u@a/d", 10),
            ("postgres://u@a,b/d", 3),
            ("user=u hostaddr=10.0.0.1,10.0.0.2", 3),
            ("postgres://u@a,b/d?connect_timeout=2", 2),
            ("postgres://u@a/d?connect_timeout=2", 2),
        ] {
            let database: super::Database = url.parse().expect(url);
            assert_eq!(database.step_timeout().as_secs(), seconds, "{url}");
        }
    }

    /// Once a standby answered it would be preferred, and no later connection would try the primary.
    #[test]
    fn of_several_hosts_the_one_that_takes_writes_is_meant() {
        use super::TargetSessionAttrs as Attrs;
        for (url, expected) in [
            ("postgres://u@a/d", Attrs::Any),
            ("postgres://u@a,b/d", Attrs::ReadWrite),
            ("postgres://u@a,b/d?target_session_attrs=any", Attrs::ReadWrite),
            ("user=u hostaddr=10.0.0.1,10.0.0.2", Attrs::ReadWrite),
            ("postgres://u@a,b/d?target_session_attrs=primary", Attrs::ReadWrite),
            ("postgres://u@a,b/d?target_session_attrs=read-only", Attrs::ReadOnly),
        ] {
            let database: super::Database = url.parse().expect(url);
            assert_eq!(database.get_target_session_attrs(), expected, "{url}");
        }
    }

    #[test]
    fn modes_with_and_without_authorities() {
        assert_eq!(mode("postgres://h/d"), Some(Mode::Prefer));
        assert_eq!(mode("postgres://h/d?sslmode=require"), Some(Mode::Require));
        assert_eq!(mode("postgres://h/d?sslmode=require&sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("postgres://h/d?sslrootcert=system"), Some(Mode::VerifyFull));
        assert_eq!(mode("postgres://h/d?sslmode=verify-full&sslrootcert=system"), Some(Mode::VerifyFull));
        assert_eq!(mode("postgres://h/d?sslmode=verify-full"), Some(Mode::VerifyFull));
        for weak in ["prefer", "require", "verify-ca"] {
            assert_eq!(mode(&format!("postgres://h/d?sslmode={weak}&sslrootcert=system")), None, "{weak}");
        }
        assert_eq!(mode("postgres://h/d?sslmode=verify-ca"), None);
        assert_eq!(mode("postgres://u:p?w@h/d?ssl%6Dode=require&sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("host=h sslmode=require sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("postgres://h/d?sslmode=disable&sslrootcert=ca.pem"), Some(Mode::Disable));
        assert!(tls_parameters("postgres://h/d?sslmode=maybe").is_err());
    }
}
