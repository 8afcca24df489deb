//! `cdc-relay failover` goes on with a promoted standby.
//!
//! `run` does so by itself where synchronous standbys had everything before it was emitted (`source::worker::promotion`). Elsewhere it
//! is a command: somebody has to know that the old primary is gone, and a queue cannot be read back.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use brokers::Brokers;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::verify::{Reading, Wanted, topics_of};
use super::wiring::SinkClients;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::failover::{Continuation, Evidence, Obstacle, branches, judge};
use crate::checkpoint::state::{Checkpoint, Cluster, Slot};
use crate::commands::arguments::{AmqpArgs, JsonArgs, RoutesArgs, only_source};
use crate::commands::outcome::{Ending, Outcome};
use crate::commands::terminal::print;
use crate::observe::metrics::Metrics;
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::backfill::{resnapshot, snapshot};
use crate::source::clients::KafkaClients;
use crate::source::context::SourceContext;
use crate::source::inspect;

/// Goes on with a promoted standby, if it provably has everything that was emitted, and nothing is lost.
///
/// After a promotion `run` goes on by itself where the checkpoint says that synchronous standbys had everything before it was
/// emitted, and otherwise refuses, since the timeline differs. This command asks the server where its timeline branched
/// off, reads on Kafka up to which commit anything was emitted, and checks the slot. All emitted events must have been
/// committed before the branch, and the slot must exist and not be past the last acknowledged commit. Then the command
/// writes the new timeline to the checkpoint, and `run` goes on in the same chain of positions. Otherwise it says why,
/// and `cdc-relay resnapshot` is the alternative.
///
/// The slot exists on the standby if it is a failover slot (PostgreSQL 17 and newer), or if Patroni keeps it there. The standby
/// has all emitted changes if it is one of the synchronous ones that commits waited for and the source says synchronous = "require", or if
/// synchronized_standby_slots names its physical slot. The old primary must be gone for good: its later commits are on no
/// timeline that anybody reads.
///
/// Some things cannot be checked, e.g. the messages that RabbitMQ received by a relay that waited for no standby. The command
/// names them, and then needs --yes.
/// Use the routes file that the source was emitted with.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay failover --source payments          looks, and goes on if everything can be shown
  cdc-relay failover --source payments --yes --from 2026-11-24T00:00:00Z

Exit code 1: nothing was changed, and the answer says why.")]
pub struct Options {
    #[command(flatten)]
    routes: RoutesArgs,
    /// Goes on though something cannot be shown: a queue cannot be read, for one.
    #[arg(long)]
    yes: bool,
    /// Reads on Kafka only what was emitted since: some time at which the old primary was surely well.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    kafka: Brokers,
}

/// The facts and the outcome.
#[derive(Debug, Serialize)]
struct Report {
    source: String,
    /// Whether the checkpoint was changed, so that `run` goes on.
    done: bool,
    /// Why the failover is not possible.
    obstacle: Option<String>,
    /// The checks that cannot be made, which --yes accepts.
    caveats: Vec<String>,
    timeline: u32,
    /// The timeline of the checkpoint before.
    checkpoint_timeline: Option<u32>,
    branched_off: Option<String>,
    /// The last commit that was emitted, according to the checkpoint.
    sent_lsn: Option<String>,
    newest_on_kafka: Option<String>,
    acknowledged: Option<String>,
    slot: String,
    confirmed: Option<String>,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = options.routes.read()?;
    let (routes, source) = super::wiring::resolved(&options.kafka, &routes, only_source(&routes)?)?;
    let report = work(options, routes, &source)?;
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&text(&report))?;
    }
    Ok(if report.done { Ending::Fine } else { Ending::Bad })
}

/// The work blocks, so it has a thread of its own: the runtime's is for the clients.
#[tokio::main(worker_threads = 1)]
async fn work(options: &Options, routes: Routes, source: &Source) -> Result<Report> {
    let (metrics, routes) = (Metrics::new()?, Arc::new(routes));
    let without_queue = AmqpArgs { amqp_url: None };
    let context = super::wiring::context(
        &SinkClients { kafka: &options.kafka, amqp: &without_queue },
        &metrics,
        &routes,
        source,
    )?;
    let (options, context) = (options.clone(), Arc::new(context));
    tokio::task::spawn_blocking(move || decide(&options, &context))
        .await
        .context("the thread of the command panicked")?
}

fn decide(options: &Options, context: &Arc<SourceContext>) -> Result<Report> {
    let mut clients = KafkaClients::new(context);
    clients.connect()?;
    let loaded = clients.load(0)?;
    let mut session = inspect::connect(&context.database, loaded.checkpoint.as_ref())?;
    resnapshot::lock_out_others(&mut session, context.source.slot.get_ref())?;
    let server = Server::query(&mut session, &context.source)?;
    let chain =
        loaded.checkpoint.as_ref().map(|checkpoint| checkpoint.chain_name.clone()).unwrap_or_default();
    let (newest, notes) = newest(options, context, &chain)?;
    let unfinished = snapshot::unfinished(&context.source, &server.cluster, &loaded.positions);
    let history = branches(&server.history);
    let checkpoint = loaded.checkpoint.as_ref();
    let judgement = judge(&Evidence {
        checkpoint,
        cluster: &server.cluster,
        standby: server.standby,
        database: &server.database,
        routes: &context.source.fingerprint(),
        unfinished: unfinished.as_deref(),
        branches: &history,
        slot: server.slot.as_ref(),
        newest,
    });
    let mut report = report(&context.source, checkpoint, &server, newest, &judgement);
    let Ok(continuation) = judgement else { return Ok(report) };
    report.caveats = caveats(&context.source, checkpoint, newest);
    report.caveats.extend(notes);
    if options.yes || report.caveats.is_empty() {
        // Reading the topics took a while.
        ensure!(
            clients.load(loaded.end)?.checkpoint.is_none(),
            "the checkpoint was written meanwhile, so a relay is running. Stop it, then start over"
        );
        clients.save(&continuation.checkpoint)?;
        report.done = true;
    }
    Ok(report)
}

/// The facts of the server.
struct Server {
    cluster: Cluster,
    standby: bool,
    database: String,
    history: String,
    slot: Option<Slot>,
}

impl Server {
    fn query(session: &mut Session, source: &Source) -> Result<Server> {
        // In this order: a standby that is promoted in between is still taken for one.
        let standby = inspect::standby(session)?;
        let (cluster, database) = inspect::cluster(session)?;
        let history = inspect::timeline_history(session, cluster.timeline)?;
        let slot = inspect::slot(session, source.slot.get_ref())?;
        Ok(Server { cluster, standby, database, history, slot })
    }
}

/// The newest commit of the chain's records on Kafka, and the topics that could not be read. Positions of other chains, such as
/// those before a resnapshot, say nothing about this server.
fn newest(options: &Options, context: &SourceContext, chain: &ChainName) -> Result<(Lsn, Vec<String>)> {
    let routes = &context.routes;
    let wanted = Wanted::One(context.source.name.get_ref().clone());
    let mut reading = Reading::connect(&context.brokers, routes, topics_of(routes), options.from)?;
    reading.all(&wanted)?;
    let newest = reading.newest(chain);
    let (_, _, notes) = reading.judge(&wanted);
    Ok((newest, notes))
}

/// The checks that cannot be made, and the differences afterwards. The operator has to accept them.
fn caveats(source: &Source, checkpoint: Option<&Checkpoint>, newest: Lsn) -> Vec<String> {
    let mut caveats = Vec::new();
    // Nothing was emitted anywhere that the promoted standby lacks.
    let is_known = checkpoint.is_some_and(|checkpoint| checkpoint.synchronous);
    if !is_known && !super::wiring::queues(source).is_empty() {
        caveats.push(
            "a queue cannot be read: unless the relay waited for standbys (synchronous = \"require\"), it may have a message of \
             a transaction that this server does not have"
                .to_owned(),
        );
    }
    let compacted = source.compacted_topics();
    if !is_known && !compacted.is_empty() {
        caveats.push(format!(
            "records of compacted topics have no position ({}): one of them may be of a transaction that this server does \
             not have",
            compacted.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    let chain = checkpoint.map_or(Lsn::ZERO, |checkpoint| checkpoint.chain);
    if newest < chain {
        caveats.push(format!(
            "Kafka does not show the transaction of {chain}, which was emitted: it is older than the topics reach, or than \
             --from. Later events may be missing on Kafka too"
        ));
    }
    for table in source.tables.iter().filter(|table| table.id.is_none()) {
        let name = &table.table_name;
        caveats.push(format!(
            "{name} has no `id`: its events are named after the timeline, and those that are emitted again get \
             another id"
        ));
    }
    caveats
}

fn report(
    source: &Source,
    checkpoint: Option<&Checkpoint>,
    server: &Server,
    newest: Lsn,
    judgement: &Result<Continuation, Obstacle>,
) -> Report {
    let branch = match judgement {
        Ok(Continuation { branch, .. }) | Err(Obstacle::Ahead { branch, .. }) => Some(branch),
        Err(_) => None,
    };
    Report {
        source: source.name.get_ref().clone(),
        done: false,
        obstacle: judgement.as_ref().err().map(ToString::to_string),
        caveats: Vec::new(),
        timeline: server.cluster.timeline,
        checkpoint_timeline: checkpoint.map(|checkpoint| checkpoint.timeline),
        branched_off: branch.map(|branch| branch.at.to_string()),
        sent_lsn: checkpoint.map(|checkpoint| checkpoint.sent_lsn.to_string()),
        newest_on_kafka: (newest > Lsn::ZERO).then(|| newest.to_string()),
        acknowledged: checkpoint.map(|checkpoint| checkpoint.acknowledged.to_string()),
        slot: source.slot.get_ref().clone(),
        confirmed: server.slot.as_ref().and_then(|slot| slot.confirmed).map(|lsn| lsn.to_string()),
    }
}

fn text(report: &Report) -> String {
    let Report { source, timeline, slot, .. } = report;
    let mut out = match &report.obstacle {
        Some(obstacle) => format!("Nothing was changed: {obstacle}.\n\n"),
        None if report.done => format!("Source {source} goes on with timeline {timeline}.\n\n"),
        None => "Nothing was changed. All checks passed except those below, which cannot be verified. To accept them, pass --yes.\n\n"
            .to_owned(),
    };
    for caveat in &report.caveats {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "  {caveat}.");
    }
    if !report.caveats.is_empty() {
        out.push('\n');
    }
    let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    let saved = report.checkpoint_timeline.map_or_else(|| "none".to_owned(), |timeline| timeline.to_string());
    let mut rows = vec![
        ("timeline", format!("{timeline}; checkpoint: {saved}")),
        ("sent", format!("up to {}; newest on Kafka {}", or(&report.sent_lsn), or(&report.newest_on_kafka))),
        ("slot", format!("{slot} at {}; acknowledged {}", or(&report.confirmed), or(&report.acknowledged))),
    ];
    if let Some(at) = &report.branched_off {
        rows.insert(1, ("branched off", at.clone()));
    }
    for (name, value) in rows {
        let _ = writeln!(out, "  {name:<14}{value}");
    }
    if report.done {
        out += "\n`cdc-relay run` goes on from the slot, in the same chain of positions.\n";
    } else if report.obstacle.is_some() && report.checkpoint_timeline != Some(*timeline) {
        out += "\nIf the obstacle cannot be removed: `cdc-relay resnapshot` emits every row again.\n";
    }
    out
}
