//! `bench relay`: the relay beside its best-known peer and beside the limit, on one backlog and one table.
//!
//! 1. A backlog of rows is committed once, in two shapes: 1,000 rows a transaction, and one. Each run replays it
//!    through a copy of one slot, by turns: `pg_recvlogical` to /dev/null, cdc-relay into Kafka, Debezium (on
//!    Kafka Connect) into Kafka. Rates come from the broker's own append times, so nothing reads meanwhile.
//! 2. Commits at a steady rate; each record's way from its commit to a consumer. Beside it the duration of the
//!    commit, and the same with the committer as the producer, which no relay can beat.
//! 3. Every engine's first topic of a shape is read back: every row must be there.
//!
//! cdc-relay has one and the same configuration everywhere. Debezium has the profile that suits it best for each
//! part, and a Java machine that is warm: its first drain of a shape is not counted.

pub mod backlog;
pub mod commits;
pub mod debezium;
pub mod drain;
pub mod engine;
pub mod kafka;
pub mod limit;
pub mod report;
pub mod run;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cpu::Meter;
use super::figures::median;
use backlog::{Backlog, Shape};
use brokers::Brokers;
use coroctl::stack::Stack;
use debezium::{Debezium, Profile};
use engine::{Engine, Relay};
use kafka::Topics;
use report::{Latency, Report, Round};
use run::Run;

#[derive(clap::Args)]
pub struct Options {
    /// Rows of each backlog, about 240 bytes each.
    #[arg(long, default_value_t = 500_000)]
    pub rows: u64,
    /// Rounds of each engine and shape.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Shapes of the backlog.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Shape::Batches, Shape::Singles])]
    pub shapes: Vec<Shape>,
    /// The engines that take part.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Name::Limit, Name::Relay, Name::Debezium, Name::Direct])]
    pub engines: Vec<Name>,
    /// Single-row commits per second while latencies are measured; 0 leaves them out.
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
    /// Seconds of each measurement of latencies.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Debezium writes the row alone (`ExtractNewRecordState`), as cdc-relay does, not its envelope.
    #[arg(long)]
    pub unwrap: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub programs: Programs,
}

/// The programs that take part; `cargo stack` sets them.
#[derive(clap::Args, Clone)]
pub struct Programs {
    #[arg(long, env = "RELAY_PROGRAM", hide = true)]
    pub relay: PathBuf,
    #[arg(long, env = "POSTGRES_PROGRAMS", hide = true)]
    pub postgres: PathBuf,
    #[arg(long, env = "JAVA_PROGRAM", hide = true)]
    pub java: PathBuf,
    #[arg(long, env = "KAFKA_JARS", hide = true)]
    pub kafka: PathBuf,
    #[arg(long, env = "DEBEZIUM_PLUGINS", hide = true)]
    pub debezium: PathBuf,
}

/// An engine that can take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// `pg_recvlogical` to /dev/null.
    Limit,
    Relay,
    Debezium,
    /// The committer produces the event too, as soon as the commit is answered: no relay can be faster. Latencies
    /// only. (It loses events whose commit comes right before a crash, which is why there are relays.)
    Direct,
}

impl Name {
    pub fn shown(self) -> &'static str {
        match self {
            Self::Limit => "pg_recvlogical",
            Self::Relay => "cdc-relay",
            Self::Debezium => "Debezium",
            Self::Direct => "committer itself",
        }
    }
}

/// The surroundings that every part shares.
pub struct BenchContext<'a> {
    pub options: &'a Options,
    pub stack: &'a Stack,
    pub topics: Topics,
    pub meter: Meter,
    /// For configuration and logs of the programs.
    pub folder: PathBuf,
}

/// Measures and prints; fails when an engine lost a row.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    ensure!(options.rows >= 1000, "a backlog has at least 1,000 rows");
    let folder = Path::new(&stack.dir).join("bench-relay");
    std::fs::create_dir_all(&folder)?;
    let context = BenchContext {
        options,
        stack,
        topics: Topics::connect(Brokers::read(&stack.kafka_admin_config)?)?,
        meter: Meter::of_servers(Path::new(&stack.dir))?,
        folder,
    };
    let mut backlog = Backlog::make(stack).await?;
    let measured = tokio::select! {
        measured = measure(&context, &mut backlog) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    backlog.remove().await?;
    let report = measured?;
    report.print(options.json)?;
    report.verdict()
}

async fn measure(context: &BenchContext<'_>, backlog: &mut Backlog) -> Result<Report> {
    let options = context.options;
    let mut report = Report::new(options);
    let takes_part = |name| options.engines.contains(&name);
    let mut debezium = match takes_part(Name::Debezium) {
        true => Some(Debezium::start(context).await.context("Kafka Connect")?),
        false => None,
    };
    for shape in &options.shapes {
        tracing::info!(rows = options.rows, %shape, "committing the backlog");
        backlog.load(*shape, options.rows).await?;
        if let Some(engine) = &mut debezium {
            tracing::info!(%shape, "Debezium warms up");
            engine.profile = Profile::Balanced;
            drained(context, backlog, &mut Engine::Debezium(engine), (*shape, 0)).await?;
        }
        for round in 1..=options.rounds {
            for name in &options.engines {
                tracing::info!(%shape, round, of = options.rounds, engine = name.shown(), "drain");
                let at = (*shape, round);
                let measured = match (name, &mut debezium) {
                    (Name::Limit, _) => Some(limit::drain(context, backlog, at).await?),
                    (Name::Relay, _) => {
                        Some(drained(context, backlog, &mut Engine::Relay(&mut Relay::default()), at).await?)
                    }
                    (Name::Debezium, Some(engine)) => {
                        Some(drained(context, backlog, &mut Engine::Debezium(engine), at).await?)
                    }
                    (Name::Debezium, None) | (Name::Direct, _) => None,
                };
                report.rounds.extend(measured);
            }
        }
    }
    if options.rate > 0 {
        report.latencies = latencies(context, backlog, debezium.as_mut()).await?;
    }
    if let Some(debezium) = debezium {
        debezium.stop().await?;
    }
    Ok(report)
}

/// One drain by one engine, through a slot and into a topic of its own.
async fn drained(
    context: &BenchContext<'_>,
    backlog: &Backlog,
    engine: &mut Engine<'_>,
    (shape, round): (Shape, u32),
) -> Result<Round> {
    let run = Run::new(engine.name(), &format!("{shape}{round}"));
    backlog.copy_slot(&run.slot).await?;
    backlog.checkpoint().await?;
    context.topics.make(&run.topic).await?;
    engine.start(context, backlog, &run).await?;
    let measured = drain::watch(context, engine, &run, (shape, round)).await;
    engine.stop(context).await?;
    backlog.drop_slot(&run.slot).await?;
    let mut measured = measured.with_context(|| engine.log(context))?;
    if round == 1 {
        let there = context.topics.distinct_keys(&run.topic).await?;
        measured.lost = context.options.rows.saturating_sub(there);
    }
    context.topics.remove(&run).await?;
    Ok(measured)
}

/// Each engine `rounds` times, by turns.
async fn latencies(
    context: &BenchContext<'_>,
    backlog: &mut Backlog,
    mut debezium: Option<&mut Debezium>,
) -> Result<Vec<Latency>> {
    let mut found = Vec::new();
    let window = Duration::from_secs(context.options.seconds);
    backlog.clear().await?;
    for round in 0..=context.options.rounds {
        for name in &context.options.engines {
            let mut relay = Relay::default();
            let run = Run::new(*name, &format!("latency{round}"));
            let mut engine = match (name, &mut debezium) {
                (Name::Direct, _) => Engine::Direct(context.topics.direct_producer(&run.topic)?),
                (Name::Relay, _) => Engine::Relay(&mut relay),
                (Name::Debezium, Some(engine)) => {
                    engine.profile = Profile::Latency;
                    Engine::Debezium(engine)
                }
                (Name::Limit, _) | (Name::Debezium, None) => continue,
            };
            tracing::info!(round, of = context.options.rounds, engine = name.shown(), "latencies");
            backlog.make_slot(&run.slot).await?;
            context.topics.make(&run.topic).await?;
            engine.start(context, backlog, &run).await?;
            // Round 0 is short, and warms up.
            let window = if round == 0 { window / 3 } else { window };
            let measured = commits::measure(context, backlog, &engine, &run, window).await;
            engine.stop(context).await?;
            backlog.drop_slot(&run.slot).await?;
            context.topics.remove(&run).await?;
            let measured = measured.with_context(|| engine.log(context))?;
            if round > 0 {
                found.push(measured);
            }
        }
    }
    Ok(found)
}

/// The median of a figure over some rounds.
fn median_of<'a, T: 'a>(rounds: impl Iterator<Item = &'a T>, figure: impl Fn(&T) -> f64) -> Option<f64> {
    median(rounds.map(figure).collect())
}
