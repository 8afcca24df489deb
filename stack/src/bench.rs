//! `cargo stack bench NAME`: what is measured, and the servers it is measured on.
//!
//! `saga` measures the running stack. `relay` has servers of its own, without services: whatever else reads the
//! log would be measured too.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use crate::install::in_ci;
use crate::layout::Layout;
use crate::output::Progress;
use crate::process::ProcessId;
use crate::servers::{java, kafka, postgres};
use crate::up::{Extent, Wish, afresh};
use crate::{debezium, down, environment, workspace};

/// The first port of the servers of `bench relay`.
const RELAY_PORT: u16 = 24_000;

/// A benchmark; its options are its own program's, which explains them.
#[derive(Debug, Subcommand)]
pub enum Benchmark {
    /// Settled payments per second of the running stack, beside the floor that SQL alone sets.
    #[command(disable_help_flag = true)]
    Saga(Passed),
    /// The relay beside Debezium, on servers of its own.
    #[command(disable_help_flag = true)]
    Relay(Passed),
    /// The cost of clients that follow their payments, on the running stack.
    #[command(disable_help_flag = true)]
    Waiters(Passed),
    /// One of several shards is away, on the running stack: the latencies of the users of the others.
    #[command(disable_help_flag = true)]
    ShardAway(Passed),
}

#[derive(Debug, Args)]
pub struct Passed {
    /// See `--help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// # Errors
/// When it cannot be measured, or something went missing meanwhile.
pub fn run(layout: &Layout, benchmark: &Benchmark) -> Result<()> {
    let (name, Passed { arguments }) = match benchmark {
        Benchmark::Saga(passed) => ("saga", passed),
        Benchmark::Relay(passed) => ("relay", passed),
        Benchmark::Waiters(passed) => ("waiters", passed),
        Benchmark::ShardAway(passed) => ("shard-away", passed),
    };
    let mut all = vec!["bench", name];
    all.extend(arguments.iter().map(String::as_str));
    let asks_for_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    if asks_for_help || !matches!(benchmark, Benchmark::Relay(_)) {
        return workspace::e2e(layout, &all);
    }
    let own = Layout::new(Some(PathBuf::from(".stack-bench")), RELAY_PORT)?;
    let measured = relay(&own, &all);
    down::down(&own)?;
    measured?;
    down::remove(&own)
}

fn relay(layout: &Layout, arguments: &[&str]) -> Result<()> {
    let owner = Some(ProcessId::me().context("no /proc")?);
    let wish = Wish {
        extent: Extent::Servers,
        with: Vec::new(),
        yes: in_ci(),
        owner,
        tls: false,
        ha: false,
        shards: None,
        programs: None,
    };
    afresh(layout, &wish)?;
    let progress = Progress::default();
    progress.step("build", |step| {
        workspace::build(layout, &["--bin", "e2e", "--bin", "cdc-relay"], step)?;
        Ok(String::new())
    })?;
    progress.step("debezium", |step| debezium::download(layout, step))?;
    let mut command = workspace::command(layout, &workspace::binary(layout, "e2e").display().to_string());
    command
        .args(arguments)
        .envs(environment::variables(layout)?)
        .env("RELAY_PROGRAM", workspace::binary(layout, "cdc-relay"))
        .env("POSTGRES_PROGRAMS", postgres::programs().context("PostgreSQL is not installed")?)
        .env("JAVA_PROGRAM", java::java(&kafka::JAVA).context("Java is not installed")?)
        .env("KAFKA_JARS", kafka::jars(layout))
        .env("DEBEZIUM_PLUGINS", debezium::plugins(layout));
    let status = command.status().context("e2e")?;
    ensure!(status.success(), "bench relay failed ({status}); logs in {}", layout.dir.display());
    Ok(())
}
