//! Measures how fast a backlog goes to Kafka, and its cost, from the broker and /proc, never from the engine.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::BaseConsumer;
use stack::process::ProcessId;

use super::backlog::Shape;
use super::engine::Engine;
use super::kafka::{appended_at, ends};
use super::report::{Costs, Round};
use super::run::Run;
use super::{BenchContext, Name};
use crate::bench::cpu::{Meter, Sample};

/// How often the broker is asked. Rates do not depend on it.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A drain fails when no further record arrives for so long.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until the topic holds the backlog.
pub async fn watch(
    context: &BenchContext<'_>,
    engine: &Engine<'_>,
    run: &Run,
    (shape, round): (Shape, u32),
) -> Result<Round> {
    let (name, id) = (engine.name(), engine.process()?);
    let meter = context.meter.and(name.shown(), id);
    let (consumer, topic, rows) = (context.topics.consumer()?, run.topic.clone(), context.options.rows);
    let watched = tokio::task::spawn_blocking(move || {
        let (first, last) = follow(&consumer, &topic, rows, &meter, id)?;
        let peak = peak_bytes(id)?;
        let seconds = duration(&consumer, &topic)?;
        Ok::<_, anyhow::Error>((first, last, peak, seconds))
    });
    let (first, last, peak, seconds) = watched.await??;
    Ok(Round {
        engine: name,
        shape,
        round,
        rows_per_second: rows as f64 / seconds,
        costs: Costs::between(&first, &last, name),
        peak_mib: peak as f64 / f64::from(1 << 20),
        lost: 0,
    })
}

/// Records in the topic, and the processor time until then.
pub struct Progress {
    pub rows: i64,
    pub sample: Sample,
}

fn follow(
    consumer: &BaseConsumer,
    topic: &str,
    rows: u64,
    meter: &Meter,
    id: ProcessId,
) -> Result<(Progress, Progress)> {
    let (mut first, mut rows_seen, mut moved) = (None, 0, Instant::now());
    loop {
        let there: i64 = ends(consumer, topic)?.iter().sum();
        if there > rows_seen {
            (rows_seen, moved) = (there, Instant::now());
        }
        if there > 0 && first.is_none() {
            first = Some(Progress { rows: there, sample: meter.sample() });
        }
        if there >= rows as i64 {
            let last = Progress { rows: there, sample: meter.sample() };
            return Ok((first.context("no row came")?, last));
        }
        ensure!(id.alive(), "the program ended after {rows_seen} of {rows} rows");
        ensure!(
            moved.elapsed() < STALL_TIMEOUT,
            "no row came for {STALL_TIMEOUT:?}, after {rows_seen} of {rows}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// From the first record's append to the last one's.
fn duration(consumer: &BaseConsumer, topic: &str) -> Result<f64> {
    let (mut begun, mut ended) = (i64::MAX, i64::MIN);
    for (partition, end) in (0..).zip(ends(consumer, topic)?) {
        if end > 0 {
            begun = begun.min(appended_at(consumer, topic, partition, 0)?);
            ended = ended.max(appended_at(consumer, topic, partition, end - 1)?);
        }
    }
    Ok((ended - begun).max(1) as f64 / 1000.0)
}

/// The most memory the process ever held.
pub fn peak_bytes(id: ProcessId) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", id.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kilobytes: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kilobytes << 10)
}

impl Costs {
    /// Per million of the rows that came between the two samples.
    fn between(first: &Progress, last: &Progress, engine: Name) -> Self {
        let cpu_time = last.sample.since(&first.sample);
        Self::new(&cpu_time, (last.rows - first.rows).max(1) as f64, engine)
    }
}
