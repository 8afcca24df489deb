//! Queries Postgres every few seconds for the status of the slot.
//!
//! * It has a connection of its own, so that it also answers for a standby, and while the stream does not move.
//! * It asks the server of the checkpoint: a connection that was opened under another one is left.
//! * A failed query is counted; only the first and the last of several are logged.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::observe::metrics::{SLOT_STATUSES, SlotSeries, SourceMetrics};
use crate::observe::slot_trend::{Reading, Trend, seconds_left};
use crate::postgres::asked_connection::AskedConnection;
use crate::postgres::connection_url::Database;
use crate::postgres::lsn::PgTime;

const QUERY_INTERVAL: Duration = Duration::from_secs(5);
/// A query that takes longer has failed.
const QUERY_TIMEOUT: Duration = Duration::from_secs(4);

const QUERY: &str = "select (pg_current_wal_lsn() - '0/0')::int8, (confirmed_flush_lsn - '0/0')::int8, \
                     (restart_lsn - '0/0')::int8, safe_wal_size, coalesce(wal_status, 'lost') \
                     from pg_replication_slots where slot_name = $1";

/// A slot as the server describes it; positions are bytes from the beginning of the WAL.
struct Slot {
    reading: Reading,
    restart: Option<i64>,
    safe: Option<i64>,
    status: String,
}

/// Runs until `shutdown`.
pub async fn watch(database: Database, slot: String, metrics: SourceMetrics, shutdown: CancellationToken) {
    let _stopped = shutdown.run_until_cancelled(query_repeatedly(&database, &slot, &metrics)).await;
}

async fn query_repeatedly(database: &Database, slot: &str, metrics: &SourceMetrics) {
    let (mut connection, mut trend, mut failing) = (None, Trend::default(), false);
    let mut ticks = interval(QUERY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = timeout(QUERY_TIMEOUT, query(database, slot, &mut connection)).await;
        match answer.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", QUERY_TIMEOUT.as_secs()))) {
            Ok(found) => {
                if failing {
                    tracing::info!(source = metrics.name, slot, "the slot can be watched again");
                }
                failing = false;
                metrics.slot.watched_at.set(PgTime::now().unix_seconds());
                report(found.as_ref(), &mut trend, &metrics.slot);
            }
            Err(error) => {
                connection = None;
                metrics.slot.watch_failures.inc();
                if !failing {
                    tracing::warn!(source = metrics.name, slot, "the slot cannot be watched: {error:#}");
                }
                failing = true;
            }
        }
    }
}

/// Connects first if necessary. `None`: the slot does not exist.
async fn query(
    database: &Database,
    slot: &str,
    connection: &mut Option<AskedConnection>,
) -> Result<Option<Slot>> {
    let prepare = async |client: &Client| Ok(client.prepare(QUERY).await?);
    let AskedConnection { client, statement, .. } =
        AskedConnection::ready(connection, database, prepare).await?;
    let Some(row) = client.query_opt(statement, &[&slot]).await? else { return Ok(None) };
    let written = row.try_get(0)?;
    Ok(Some(Slot {
        reading: Reading { written, confirmed: row.try_get::<_, Option<i64>>(1)?.unwrap_or(written) },
        restart: row.try_get(2)?,
        safe: row.try_get(3)?,
        status: row.try_get(4)?,
    }))
}

fn report(slot: Option<&Slot>, trend: &mut Trend, series: &SlotSeries) {
    let status = slot.map_or("missing", |slot| slot.status.as_str());
    for (name, gauge) in SLOT_STATUSES.iter().zip(&series.status) {
        gauge.set(i64::from(*name == status));
    }
    let Some(&Slot { reading, restart, safe, .. }) = slot else {
        let unknown = [&series.lag, &series.retained, &series.safe, &series.invalidation];
        for gauge in unknown.into_iter().chain([&series.written, &series.confirmed]) {
            gauge.set(f64::NAN);
        }
        return;
    };
    trend.read(PgTime::now(), reading);
    // The server names no limit for a slot that is already lost.
    let safe = if status == "lost" { Some(0) } else { safe };
    series.lag.set((reading.written - reading.confirmed) as f64);
    series.retained.set(restart.map_or(0.0, |restart| (reading.written - restart) as f64));
    series.safe.set(safe.map_or(f64::INFINITY, |safe| safe as f64));
    series.invalidation.set(seconds_left(safe, trend.bytes_per_second()));
    series.written.set(reading.written as f64);
    series.confirmed.set(reading.confirmed as f64);
    if let Some(at) = trend.progressed() {
        series.progressed_at.set(at.unix_seconds());
    }
}
