//! A connection of the mover to one shard.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;
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

// A commit waits for the synchronous standbys where there are any, whatever the role's setting is. The server notices that this
// process is away, so that the lock does not outlive it. Rows are compared as texts, so both write them in the same way.
const SESSION: &str = "
    set application_name = 'coro-move';
    set synchronous_commit = on;
    set lock_timeout = '10s';
    set statement_timeout = '10min';
    set idle_in_transaction_session_timeout = '30s';
    set timezone = 'UTC';
    set datestyle = 'ISO, YMD';
    set intervalstyle = 'postgres';
    set bytea_output = 'hex';
    set extra_float_digits = 1;
    set tcp_keepalives_idle = 10;
    set tcp_keepalives_interval = 5;
    set tcp_keepalives_count = 3";

const LOCK: &str = "select pg_try_advisory_lock(hashtextextended('coro move', 0))";
const RELOCK_INTERVAL: Duration = Duration::from_millis(20);
const RELOCK_TIMEOUT: Duration = Duration::from_secs(1);
const STANDBY_TIMEOUT: Duration = Duration::from_secs(10);
const STANDBY_INTERVAL: Duration = Duration::from_millis(2);
// Where there are synchronous standbys, one of them has flushed everything up to now. A commit whose wait was cancelled is reported
// as a success, with a warning that nobody reads here.
const IS_ON_STANDBY: &str = "
    select current_setting('synchronous_standby_names') = ''
           or exists (select from pg_stat_replication
                       where sync_state in ('sync', 'quorum') and flush_lsn >= $1::text::pg_lsn)";
const LSN: &str = "select pg_current_wal_flush_lsn()::text";

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

    /// A session in the place of the present one, with its lock.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        *self = Self::connect(&ShardUrl { name: self.name.clone(), url: self.url.clone() }).await?;
        // The server ends the former session a moment later.
        let began = Instant::now();
        while !self.try_lock().await? {
            if began.elapsed() > RELOCK_TIMEOUT {
                bail!("the former session of the mover on shard {} has not ended", self.name);
            }
            sleep(RELOCK_INTERVAL).await;
        }
        self.await_standby_of_commit().await
    }

    /// Keeps other movers away as long as this session lives, and makes a commit.
    pub(in crate::shard) async fn lock(&self) -> Result<()> {
        if !self.try_lock().await? {
            bail!("another mover works on shard {}; wait until it has ended", self.name);
        }
        self.await_standby_of_commit().await
    }

    async fn try_lock(&self) -> Result<bool> {
        let locked = self.client.query_one(LOCK, &[]).await;
        Ok(locked.with_context(|| format!("shard {}", self.name))?.try_get(0)?)
    }

    async fn await_standby_of_commit(&self) -> Result<()> {
        self.client.query_one(BARRIER, &[]).await.with_context(|| format!("shard {}", self.name))?;
        self.await_standby().await
    }

    /// Waits until everything that was committed is on a synchronous standby, where there are any.
    ///
    /// # Errors
    /// When none has it in time: what was committed may be undone by a promotion, and nothing may follow from it.
    pub(in crate::shard) async fn await_standby(&self) -> Result<()> {
        let on_shard = || format!("shard {}", self.name);
        let lsn: String = self.client.query_one(LSN, &[]).await.with_context(on_shard)?.try_get(0)?;
        let began = Instant::now();
        while !self
            .client
            .query_one(IS_ON_STANDBY, &[&lsn])
            .await
            .with_context(on_shard)?
            .try_get::<_, bool>(0)?
        {
            if began.elapsed() > STANDBY_TIMEOUT {
                bail!(
                    "no synchronous standby of shard {} has the last commit; resume the move once one follows",
                    self.name
                );
            }
            sleep(STANDBY_INTERVAL).await;
        }
        Ok(())
    }
}
