//! Connects to the three databases, as the role that may only read.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use postgres_tls::Connection;
use postgres_tls::hosts::{self, Opened, Preferred};
use tokio_postgres::Client;

use crate::stack::Stack;

/// A report that takes longer asks for too much: it is to name a shorter time.
const READER_SESSION: &str = "set statement_timeout = '60s'; set default_transaction_read_only = on";

/// The limit of one host's whole answer, where the URL has no `connect_timeout`. One that is frozen still takes connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection strings of the three databases, of a role that may read them.
#[derive(Args, Clone)]
pub struct DatabaseUrls {
    /// The payments database.
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true)]
    pub payments_database_url: String,
    /// The balance database.
    #[arg(long, env = "BALANCE_DATABASE_URL", hide_env_values = true)]
    pub balance_database_url: String,
    /// The processor database.
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

/// One connection to each database.
pub struct Databases {
    pub payments: Client,
    pub balance: Client,
    pub processor: Client,
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
            payments: reader("payments", &urls.payments_database_url).await?,
            balance: reader("balance", &urls.balance_database_url).await?,
            processor: reader("processor", &urls.processor_database_url).await?,
        })
    }

    /// Each with the name of its database.
    pub fn named(&self) -> [(&'static str, &Client); 3] {
        [("payments", &self.payments), ("balance", &self.balance), ("processor", &self.processor)]
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
