//! RabbitMQ is away, so a source cannot confirm, while WAL is written: the slot would soon be lost.
//!
//! * The drill lowers `max_slot_wal_keep_size`, so that minutes are enough, and puts it back. It writes at most
//!   [`WAL_BYTES_MAX`], less than the limit allows, in a database that no slot reads.
//! * Without a slot that is well up to date it does not begin.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use coroctl::stack::Stack;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::harness::Harness;

const LIMIT_MIB: usize = 1024;
const WAL_BYTES_MAX: usize = 512 << 20;
/// Bytes per write, and the time between two.
const WRITE_BYTES: usize = 1 << 20;
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// What a slot may retain at the beginning.
const RETAINED_BYTES_MAX: i64 = 256 << 20;
/// A look of the relay, a scrape and a look of Prometheus.
const END_TIMEOUT: Duration = Duration::from_secs(90);
const SINK: &str = "rabbitmq";

/// # Errors
/// When the alert or its end does not come, or a script fails.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let admin = databases::connect(&harness.stack.postgres_admin_url).await.context("Postgres")?;
    no_slot_is_behind(&admin).await?;
    reload(&admin, &format!("alter system set max_slot_wal_keep_size = '{LIMIT_MIB}MB'")).await?;
    harness.cargo_stack(&["stop", SINK]).await?;
    let writer = Writer(tokio::spawn(write(admin)));
    harness.is_broken(&format!("{SINK} is away, and WAL is written"));
    harness.alert_fires().await?;
    harness.run_runbook(&[]).await?;
    harness.alert_ends(END_TIMEOUT).await?;
    drop(writer);
    // Time is won; now what keeps the slot from advancing.
    harness.run_section("cdc-relay.md", "CdcRelaySinkStuck", &[("SINK", SINK)]).await.map(drop)
}

/// Puts the limit back that the stack has.
///
/// # Errors
/// When Postgres does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    let admin = databases::connect(&stack.postgres_admin_url).await.context("Postgres")?;
    reload(&admin, "alter system reset max_slot_wal_keep_size").await
}

async fn reload(admin: &Client, setting: &str) -> Result<()> {
    for statement in [setting, "select pg_reload_conf()"] {
        admin.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    Ok(())
}

/// The lower limit must not cost a slot that retains much already.
async fn no_slot_is_behind(admin: &Client) -> Result<()> {
    const RETAINED: &str = "
        select slot_name::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
          from pg_replication_slots where restart_lsn is not null";
    for row in admin.query(RETAINED, &[]).await.context("pg_replication_slots")? {
        let (name, bytes): (String, i64) = (row.get(0), row.get(1));
        ensure!(
            bytes < RETAINED_BYTES_MAX,
            "the slot {name} retains {bytes} bytes already: the drill could lose it"
        );
    }
    Ok(())
}

/// Ends with its owner.
struct Writer(JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes WAL that nobody decodes, up to the most.
async fn write(admin: Client) {
    let write = format!("select pg_logical_emit_message(false, 'drill', repeat('x', {WRITE_BYTES}))");
    let mut moments = tokio::time::interval(WRITE_INTERVAL);
    for _ in 0..WAL_BYTES_MAX / WRITE_BYTES {
        moments.tick().await;
        if let Err(error) = admin.batch_execute(&write).await {
            tracing::warn!(%error, "no more WAL is written");
            return;
        }
    }
}
