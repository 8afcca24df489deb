//! A connection that is asked the same again and again.
//!
//! * It leads to the server of the checkpoint: one that was opened under another server is left ([`Database::keep_to`]).

use anyhow::Result;
use tokio_postgres::{Client, Statement};

use crate::postgres::connection_url::Database;
use crate::postgres::server_identity::ServerIdentity;

pub struct AskedConnection {
    pub client: Client,
    pub statement: Statement,
    /// The server of the checkpoint when it was opened.
    primary: Option<ServerIdentity>,
}

impl AskedConnection {
    /// Returns the one that there is, or connects and prepares what it is asked.
    ///
    /// # Errors
    /// When no server can be reached, or it refuses the statement.
    pub async fn ready<'c>(
        connection: &'c mut Option<Self>,
        database: &Database,
        prepare: impl AsyncFnOnce(&Client) -> Result<Statement>,
    ) -> Result<&'c Self> {
        let primary = database.primary();
        let ready = match connection.take_if(|ready| ready.primary == primary) {
            Some(ready) => ready,
            None => {
                let client = database.connect().await?;
                let statement = prepare(&client).await?;
                Self { client, statement, primary }
            }
        };
        Ok(connection.insert(ready))
    }
}
