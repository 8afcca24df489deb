//! Connects to the databases of the three services, as the role that may only read.
//!
//! * A setting is one URL, or a list of the shards of its service: NAME=URL of each, as the service has it in `SHARDS`.
//! * Which rows of several databases count says [`owned_rows`](crate::owned_rows).

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use postgres_tls::Connection;
use postgres_tls::hosts::{self, Opened, Preferred};
use saga::shards::list;
use tokio_postgres::Client;

use crate::stack::Stack;

/// A report that takes longer asks for too much: it is to name a shorter time.
const READER_SESSION: &str = "set statement_timeout = '60s'; set default_transaction_read_only = on";

/// The limit of one host's whole answer, where the URL has no `connect_timeout`. One that is frozen still takes connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection strings of the databases, of a role that may read them.
#[derive(Args, Clone)]
pub struct DatabaseUrls {
    /// The payments database, or its shards: NAME=URL of each, separated by spaces.
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true)]
    pub payments_database_url: String,
    /// The balance database, or its shards.
    #[arg(long, env = "BALANCE_DATABASE_URL", hide_env_values = true)]
    pub balance_database_url: String,
    /// The processor database, or its shards.
    #[arg(long, env = "PROCESSOR_DATABASE_URL", hide_env_values = true)]
    pub processor_database_url: String,
}

impl From<&Stack> for DatabaseUrls {
    fn from(stack: &Stack) -> Self {
        Self {
            payments_database_url: stack.payments_database_url.clone(),
            balance_database_url: stack.balance_database_url.clone(),
            processor_database_url: stack.processor_database_url.clone(),
        }
    }
}

/// A database as a setting names it.
pub struct NamedUrl {
    /// The name of the shard; `None` where the setting is one URL.
    pub shard: Option<String>,
    pub url: String,
}

/// The databases that a setting names: one URL, or a list of shards.
///
/// # Errors
/// When it is a malformed list. The text has no URL, which may hold a password.
pub fn urls(setting: &str) -> Result<Vec<NamedUrl>> {
    if !is_list(setting) {
        return Ok(vec![NamedUrl { shard: None, url: setting.to_owned() }]);
    }
    let listed = list::parse(setting)?.into_iter();
    Ok(listed.map(|listed| NamedUrl { shard: Some(listed.name), url: listed.url }).collect())
}

/// The first entry has a URL behind its first `=`. That of a URL alone, if it has one, is among its parameters.
fn is_list(setting: &str) -> bool {
    let first = setting.split_whitespace().next().and_then(|entry| entry.split_once('='));
    first.is_some_and(|(name, url)| !name.contains("://") && url.contains("://"))
}

/// A database of a service.
pub struct ServiceDatabase {
    /// The name of the shard, where the databases are listed by name.
    pub shard: Option<String>,
    pub client: Client,
}

/// The databases of one service: one, or its shards.
pub struct ServiceDatabases {
    pub service: &'static str,
    pub databases: Vec<ServiceDatabase>,
}

impl ServiceDatabases {
    /// Connections whose statements read only, and end after a minute.
    ///
    /// # Errors
    /// When the setting is a malformed list, or a database does not answer; the text says which.
    pub async fn open(service: &'static str, setting: &str) -> Result<Self> {
        let mut databases = Vec::new();
        for NamedUrl { shard, url } in urls(setting).with_context(|| format!("the {service} databases"))? {
            let client = reader(&name(service, shard.as_deref()), &url).await?;
            databases.push(ServiceDatabase { shard, client });
        }
        Ok(Self { service, databases })
    }

    /// Connections without limits.
    ///
    /// # Errors
    /// When the setting is a malformed list, or a database does not answer; the text says which of several.
    pub async fn connect(service: &'static str, setting: &str) -> Result<Self> {
        let mut databases = Vec::new();
        for NamedUrl { shard, url } in urls(setting)? {
            let connected = connect(&url).await;
            let client = match &shard {
                Some(shard) => connected.with_context(|| format!("shard {shard}"))?,
                None => connected?,
            };
            databases.push(ServiceDatabase { shard, client });
        }
        Ok(Self { service, databases })
    }
}

/// A database for people: `payments`, or `payments (shard two)`.
pub fn name(service: &str, shard: Option<&str>) -> String {
    match shard {
        Some(shard) => format!("{service} (shard {shard})"),
        None => service.to_owned(),
    }
}

/// Connections to the databases of each service.
pub struct Databases {
    pub payments: ServiceDatabases,
    pub balance: ServiceDatabases,
    pub processor: ServiceDatabases,
}

impl Databases {
    pub async fn connect(stack: &Stack) -> Result<Self> {
        Self::open(&DatabaseUrls::from(stack)).await
    }

    /// Connections whose statements read only, and end after a minute.
    ///
    /// # Errors
    /// When a database does not answer; the text says which.
    pub async fn open(urls: &DatabaseUrls) -> Result<Self> {
        Ok(Self {
            payments: ServiceDatabases::open("payments", &urls.payments_database_url).await?,
            balance: ServiceDatabases::open("balance", &urls.balance_database_url).await?,
            processor: ServiceDatabases::open("processor", &urls.processor_database_url).await?,
        })
    }

    /// Those of each service.
    pub fn services(&self) -> [&ServiceDatabases; 3] {
        [&self.payments, &self.balance, &self.processor]
    }

    /// Each with the name of its service.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Client)> {
        self.services().into_iter().flat_map(|of| of.databases.iter().map(|one| (of.service, &one.client)))
    }
}

/// A connection to one database that reads only.
///
/// # Errors
/// When it does not answer.
pub async fn reader(name: &str, url: &str) -> Result<Client> {
    let client = connect(url).await.with_context(|| format!("cannot connect to the {name} database"))?;
    client.batch_execute(READER_SESSION).await.with_context(|| format!("the {name} database"))?;
    Ok(client)
}

/// A connection that lives as long as its client. Of several hosts it is to the first that answers in time and will do.
///
/// # Errors
/// When the URL cannot be used, or no host will do.
pub async fn connect(url: &str) -> Result<Client> {
    let Connection { config, tls } = url.parse::<Connection>()?;
    let limit = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let opened = hosts::connect(&config, &tls, &Preferred::default(), limit).await?;
    let Opened { client, connection, .. } = opened;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // The next query fails as well, and reports it.
            tracing::debug!(%error, "the connection to a database broke");
        }
    });
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(setting: &str) -> Vec<Option<String>> {
        urls(setting).unwrap().into_iter().map(|named| named.shard).collect()
    }

    #[test]
    fn one_url_stays_as_it_is() {
        for url in [
            "postgres://u:p@h/d",
            "postgres://u:p@a:1,b:2/d?sslmode=require&options=-c%20x=y",
            "postgresql://h/d?application_name=a://b",
            "host=/run/postgresql user=coro_checker dbname=payments",
            "",
        ] {
            let found = urls(url).unwrap();
            assert!(matches!(&found[..], [NamedUrl { shard: None, url: found }] if found == url), "{url}");
        }
    }

    #[test]
    fn shards_are_listed_by_name() {
        let two = "one=postgres://u:p@h/d?a=b\n two=postgres://u:p@i/d";
        assert_eq!(names(two), [Some("one".to_owned()), Some("two".to_owned())]);
        assert_eq!(names("one=postgres://h/d"), [Some("one".to_owned())]);
        for malformed in ["One=postgres://u:secret@h/d", "one=postgres://u:secret@h/d two"] {
            let error = urls(malformed).map(drop).unwrap_err().to_string();
            assert!(error.contains("of the list") && !error.contains("secret"), "{error}");
        }
    }
}
