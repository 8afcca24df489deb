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
use super::engine::Engine;
use super::kafka::{DirectProducer, assign, ends};
use super::report::Latency;
use super::run::Run;
use super::{BenchContext, Name};
use crate::bench::latency::Latencies;

/// Connections that commit.
const COMMITTERS: u32 = 4;
/// Until the first record arrives.
const FIRST_RECORD_TIMEOUT: Duration = Duration::from_secs(60);
/// Records of the first moments are not counted: whatever has to connect, connects.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the last records may take.
const LAST_RECORD_TIMEOUT: Duration = Duration::from_secs(10);

struct Measurements {
    /// From the commit, as Postgres stamped it.
    commit: Latencies,
    /// The statement itself, for the committer: no way to a consumer is shorter.
    write: Latencies,
    counting: AtomicBool,
    stop: AtomicBool,
    records: AtomicU64,
}

pub async fn measure(
    context: &BenchContext<'_>,
    backlog: &Backlog,
    engine: &Engine<'_>,
    run: &Run,
    window: Duration,
) -> Result<Latency> {
    let measurements = Arc::new(Measurements {
        commit: Latencies::new()?,
        write: Latencies::new()?,
        counting: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        records: AtomicU64::new(0),
    });
    let consumer = context.topics.consumer()?;
    assign(&consumer, &run.topic, &ends(&consumer, &run.topic)?)?;
    let consumer_thread = {
        let (measurements, name, unwrap) = (Arc::clone(&measurements), engine.name(), context.options.unwrap);
        std::thread::Builder::new()
            .name("consumer".to_owned())
            .spawn(move || receive(&consumer, &measurements, name, unwrap))?
    };
    let committed = commit(context, backlog, engine, &measurements, window).await;
    let until = Instant::now() + LAST_RECORD_TIMEOUT;
    while let Ok((all, ..)) = &committed
        && measurements.records.load(Ordering::Relaxed) < *all
        && Instant::now() < until
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    measurements.stop.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || consumer_thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
    let (all, rate, cores) = committed?;
    let arrived = measurements.records.load(Ordering::Relaxed);
    ensure!(arrived >= all, "{all} rows were committed, {arrived} arrived");
    Ok(Latency {
        engine: engine.name(),
        rate,
        commit: measurements.commit.summary(),
        write: measurements.write.summary(),
        cores,
        peak_mib: peak_bytes(engine.process()?)? as f64 / f64::from(1 << 20),
    })
}

/// Returns the committed rows, their rate in the window, and the cores that the engine used in it.
async fn commit(
    context: &BenchContext<'_>,
    backlog: &Backlog,
    engine: &Engine<'_>,
    measurements: &Arc<Measurements>,
    window: Duration,
) -> Result<(u64, f64, f64)> {
    let mut all = 0;
    let (client, insert) = backlog.committer().await?;
    let until = Instant::now() + FIRST_RECORD_TIMEOUT;
    while measurements.records.load(Ordering::Relaxed) == 0 {
        ensure!(Instant::now() < until, "no record arrives within {FIRST_RECORD_TIMEOUT:?}");
        write(&client, &insert, engine.direct()).await?;
        all += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut committers = tokio::task::JoinSet::new();
    for _ in 0..COMMITTERS {
        let (client, insert) = backlog.committer().await?;
        let (stop, measurements) = (Arc::clone(&stop), Arc::clone(measurements));
        let direct = engine.direct().cloned();
        let pause = Duration::from_secs(1) * COMMITTERS / context.options.rate;
        committers.spawn(async move {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut rows = 0;
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                let began = Instant::now();
                write(&client, &insert, direct.as_ref()).await?;
                if measurements.counting.load(Ordering::Relaxed) {
                    measurements.write.record(began.elapsed());
                }
                rows += 1;
            }
            Ok::<u64, anyhow::Error>(rows)
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let meter = context.meter.and(engine.name().shown(), engine.process()?);
    let (before, began) = (meter.sample(), Instant::now());
    measurements.counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(window).await;
    measurements.counting.store(false, Ordering::Relaxed);
    let (cpu_time, seconds) = (meter.sample().since(&before), began.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    while let Some(rows) = committers.join_next().await {
        all += rows.context("committer")??;
    }
    let rate = measurements.commit.summary().count as f64 / seconds;
    Ok((all, rate, cpu_time.of(engine.name().shown()) / seconds))
}

/// Commits one row, and produces it where the committer is the engine. It does not wait for the acknowledgement.
async fn write(client: &Client, insert: &Statement, direct: Option<&DirectProducer>) -> Result<()> {
    let began = Timestamp::now();
    client.execute(insert, &[]).await?;
    direct.map_or(Ok(()), |producer| producer.produce(began))
}

fn receive(consumer: &BaseConsumer, measurements: &Measurements, engine: Name, unwrap: bool) -> Result<()> {
    while !measurements.stop.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as i64;
        measurements.records.fetch_add(1, Ordering::Relaxed);
        if measurements.counting.load(Ordering::Relaxed) {
            let committed = committed(&message, engine, unwrap).context("a record without its time")?;
            measurements.commit.record(Duration::from_micros((now - committed).max(0) as u64));
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
