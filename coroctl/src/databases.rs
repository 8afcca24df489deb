//! Connects to the three databases, as the role that may only read.

use anyhow::{Context, Result};
use postgres_tls::Connection;
use tokio_postgres::Client;

use crate::stack::Stack;

/// One connection to each database.
pub struct Databases {
    pub payments: Client,
    pub balance: Client,
    pub processor: Client,
}

impl Databases {
    pub async fn connect(stack: &Stack) -> Result<Self> {
        Ok(Self {
            payments: connect(&stack.payments_database_url)
                .await
                .context("cannot connect to the payments database")?,
            balance: connect(&stack.balance_database_url)
                .await
                .context("cannot connect to the balance database")?,
            processor: connect(&stack.processor_database_url)
                .await
                .context("cannot connect to the processor database")?,
        })
    }

    /// Each with the name of its database.
    pub fn named(&self) -> [(&'static str, &Client); 3] {
        [("payments", &self.payments), ("balance", &self.balance), ("processor", &self.processor)]
    }
}

/// A connection that lives as long as its client.
pub async fn connect(url: &str) -> Result<Client> {
    let Connection { config, tls } = url.parse::<Connection>()?;
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // The next query fails as well, and reports it.
            tracing::debug!(%error, "the connection to a database broke");
        }
    });
    Ok(client)
}
