//! The limit that peers are usually held against: Postgres' own client, throwing everything away.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::backlog::{Backlog, PUBLICATION, Shape};
use super::drain::peak_bytes;
use super::report::{Costs, Round};
use super::run::{Run, process};
use super::{BenchContext, Name};

pub async fn drain(
    context: &BenchContext<'_>,
    backlog: &Backlog,
    (shape, round): (Shape, u32),
) -> Result<Round> {
    let run = Run::new(Name::Limit, &format!("{shape}{round}"));
    backlog.copy_slot(&run.slot).await?;
    backlog.checkpoint().await?;
    let end = backlog.end().await?;
    let rows = context.options.rows as f64;
    let began = Instant::now();
    let before = context.meter.sample();
    let mut child = Command::new(context.options.programs.postgres.join("pg_recvlogical"))
        .args(["--start", "--no-loop", "--file", "/dev/null", "--dbname", &backlog.url, "--slot", &run.slot])
        .args(["--endpos", &end, "-o", "proto_version=1", "-o", &format!("publication_names={PUBLICATION}")])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run pg_recvlogical")?;
    let id = process(&child).context("pg_recvlogical")?;
    let meter = context.meter.and(Name::Limit.shown(), id);
    let (mut last, mut peak) = (meter.sample(), 0);
    // Its clock and its walsender's end with it: the last look before that counts.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak = peak_bytes(id).unwrap_or(peak);
        last = meter.sample();
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(status.success(), "pg_recvlogical: {status}");
    let seconds = began.elapsed().as_secs_f64();
    backlog.drop_slot(&run.slot).await?;
    Ok(Round {
        engine: Name::Limit,
        shape,
        round,
        rows_per_second: rows / seconds,
        costs: Costs::new(&last.since(&before), rows, Name::Limit),
        peak_mib: peak as f64 / f64::from(1 << 20),
        lost: 0,
    })
}
