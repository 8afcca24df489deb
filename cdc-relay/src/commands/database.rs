//! Looking at a database on an ordinary connection.

use anyhow::{Context, Result};
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use super::Failure;

/// A connection string as a user gives it.
pub fn config(url: &str) -> Result<Config, Failure> {
    let mut config: Config = url
        .parse()
        .context("the connection string is not usable (postgres://user:password@host:port/database)")
        .map_err(Failure::Usage)?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(std::time::Duration::from_secs(10));
    }
    config.application_name("cdc-relay");
    Ok(config)
}

/// The connection lives as long as the client.
pub async fn connect(config: &Config) -> Result<Client> {
    let (client, connection) =
        config.connect(NoTls).await.with_context(|| format!("cannot connect to {}", place(config)))?;
    tokio::spawn(connection);
    Ok(client)
}

/// Host, port and database, without a password.
pub fn place(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(folder)) => folder.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user().unwrap_or("postgres");
    format!("{user}@{host}:{port}/{}", config.get_dbname().unwrap_or(user))
}
