//! A connection of the mover to one shard.

use anyhow::{Context, Result, bail};
use tokio_postgres::Client;

use crate::databases;

/// A shard as the mover and the other server reach it.
#[derive(Clone)]
pub struct ShardUrl {
    pub name: String,
    /// Of a role that may change everything there.
    pub url: String,
}

/// A shard with a session of the mover.
pub struct Shard {
    pub name: String,
    pub url: String,
    pub client: Client,
}

// A commit waits for the synchronous standbys where there are any, whatever the role's setting is.
const SESSION: &str = "
    set application_name = 'coro-move';
    set synchronous_commit = on;
    set lock_timeout = '10s';
    set statement_timeout = '10min';
    set idle_in_transaction_session_timeout = '30s'";

const LOCK: &str = "select pg_try_advisory_lock(hashtextextended('coro move', 0))";
/// A commit that writes, after which what was read before is on the standby too.
const BARRIER: &str = "select pg_logical_emit_message(true, 'coro-move', 'begins')";

impl Shard {
    /// # Errors
    /// When the shard does not answer.
    pub async fn connect(shard: &ShardUrl) -> Result<Self> {
        let client = databases::connect(&shard.url).await;
        let client = client.with_context(|| format!("cannot connect to shard {}", shard.name))?;
        client.batch_execute(SESSION).await.with_context(|| format!("shard {}", shard.name))?;
        Ok(Self { name: shard.name.clone(), url: shard.url.clone(), client })
    }

    /// Keeps other movers away as long as this session lives, and makes a commit.
    pub(super) async fn lock(&self) -> Result<()> {
        let locked =
            self.client.query_one(LOCK, &[]).await.with_context(|| format!("shard {}", self.name))?;
        if !locked.try_get::<_, bool>(0)? {
            bail!("another mover works on shard {}; wait until it has ended", self.name);
        }
        self.client.query_one(BARRIER, &[]).await.with_context(|| format!("shard {}", self.name))?;
        Ok(())
    }
}
