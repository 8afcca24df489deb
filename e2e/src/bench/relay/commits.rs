//! From a commit to a consumer, at a steady rate of single-row transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, Statement};

use super::backlog::Backlog;
use super::drain::peak_bytes;
use super::engine::{Engine, Run};
use super::kafka::{Teller, assign, ends};
use super::report::Latency;
use super::{Name, World};
use crate::bench::latency::Latencies;

/// Connections that commit.
const COMMITTERS: u32 = 4;
/// Until the first record arrives.
const FIRST_RECORD_TIMEOUT: Duration = Duration::from_secs(60);
/// Records of the first moments are not counted: whatever has to connect, connects.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the last records may take.
const LAST_RECORD_TIMEOUT: Duration = Duration::from_secs(10);

struct Heard {
    /// From the commit, as Postgres stamped it.
    commit: Latencies,
    /// The statement itself, for whoever commits: no way to a consumer is shorter.
    write: Latencies,
    counting: AtomicBool,
    stop: AtomicBool,
    records: AtomicU64,
}

pub async fn measure(
    world: &World<'_>,
    backlog: &Backlog,
    engine: &Engine<'_>,
    run: &Run,
    window: Duration,
) -> Result<Latency> {
    let heard = Arc::new(Heard {
        commit: Latencies::new()?,
        write: Latencies::new()?,
        counting: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        records: AtomicU64::new(0),
    });
    let consumer = world.topics.consumer()?;
    assign(&consumer, &run.topic, &ends(&consumer, &run.topic)?)?;
    let listener = {
        let (heard, name, unwrap) = (Arc::clone(&heard), engine.name(), world.options.unwrap);
        std::thread::Builder::new()
            .name("consumer".to_owned())
            .spawn(move || listen(&consumer, &heard, name, unwrap))?
    };
    let committed = commit(world, backlog, engine, &heard, window).await;
    let until = Instant::now() + LAST_RECORD_TIMEOUT;
    while let Ok((all, ..)) = &committed
        && heard.records.load(Ordering::Relaxed) < *all
        && Instant::now() < until
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    heard.stop.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || listener.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
    let (all, rate, cores) = committed?;
    let arrived = heard.records.load(Ordering::Relaxed);
    ensure!(arrived >= all, "{all} rows were committed, {arrived} arrived");
    Ok(Latency {
        engine: engine.name(),
        rate,
        commit: heard.commit.summary(),
        write: heard.write.summary(),
        cores,
        peak_mib: peak_bytes(engine.process()?)? as f64 / f64::from(1 << 20),
    })
}

/// Answers how many rows were committed, per second of the window, and the cores that the engine used in it.
async fn commit(
    world: &World<'_>,
    backlog: &Backlog,
    engine: &Engine<'_>,
    heard: &Arc<Heard>,
    window: Duration,
) -> Result<(u64, f64, f64)> {
    let mut all = 0;
    let (client, insert) = backlog.committer().await?;
    let until = Instant::now() + FIRST_RECORD_TIMEOUT;
    while heard.records.load(Ordering::Relaxed) == 0 {
        ensure!(Instant::now() < until, "nothing arrives");
        write(&client, &insert, engine.direct()).await?;
        all += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut committers = tokio::task::JoinSet::new();
    for _ in 0..COMMITTERS {
        let (client, insert) = backlog.committer().await?;
        let (stop, heard) = (Arc::clone(&stop), Arc::clone(heard));
        let direct = engine.direct().cloned();
        let pause = Duration::from_secs(1) * COMMITTERS / world.options.rate;
        committers.spawn(async move {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut rows = 0;
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                let began = Instant::now();
                write(&client, &insert, direct.as_ref()).await?;
                if heard.counting.load(Ordering::Relaxed) {
                    heard.write.record(began.elapsed());
                }
                rows += 1;
            }
            Ok::<u64, anyhow::Error>(rows)
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let meter = world.meter.and(engine.name().shown(), engine.process()?);
    let (before, began) = (meter.sample(), Instant::now());
    heard.counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(window).await;
    heard.counting.store(false, Ordering::Relaxed);
    let (spent, seconds) = (meter.sample().since(&before), began.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    while let Some(rows) = committers.join_next().await {
        all += rows.context("committer")??;
    }
    let rate = heard.commit.summary().count as f64 / seconds;
    Ok((all, rate, spent.of(engine.name().shown()) / seconds))
}

/// Commits one row, and tells it where that is the committer's own business. It does not wait for that.
async fn write(client: &Client, insert: &Statement, direct: Option<&Teller>) -> Result<()> {
    let began = Timestamp::now();
    client.execute(insert, &[]).await?;
    direct.map_or(Ok(()), |teller| teller.tell(began))
}

fn listen(consumer: &BaseConsumer, heard: &Heard, engine: Name, unwrap: bool) -> Result<()> {
    while !heard.stop.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as i64;
        heard.records.fetch_add(1, Ordering::Relaxed);
        if heard.counting.load(Ordering::Relaxed) {
            let committed = committed(&message, engine, unwrap).context("a record without its time")?;
            heard.commit.record(Duration::from_micros((now - committed).max(0) as u64));
        }
    }
    Ok(())
}

/// Microseconds since the epoch at which the row's transaction was committed.
fn committed(message: &BorrowedMessage<'_>, engine: Name, unwrap: bool) -> Option<i64> {
    let header = |name: &str| {
        let found = message.headers()?.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(found).ok().map(str::to_owned)
    };
    match (engine, unwrap) {
        (Name::Relay | Name::Direct | Name::Limit, _) => {
            Some(header("ce_time")?.parse::<Timestamp>().ok()?.as_microsecond())
        }
        (Name::Debezium, true) => header("__source_ts_us")?.parse().ok(),
        (Name::Debezium, false) => {
            let value: Value = serde_json::from_slice(message.payload()?).ok()?;
            value.pointer("/source/ts_us")?.as_i64()
        }
    }
}
