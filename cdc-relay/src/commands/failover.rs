//! `cdc-relay failover`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::verify::{Reading, told_to};
use super::{Ending, Failure, Outcome, print};
use crate::clients::Clients;
use crate::config::{AmqpArgs, JsonArgs, KafkaArgs, RoutesArgs};
use crate::failover::{Continuation, Evidence, Obstacle, branches, judge};
use crate::inspect;
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::pace::Load;
use crate::routes::{Routes, Source};
use crate::state::{Cluster, Memory, Slot};
use crate::wire::Session;

/// Goes on with a promoted standby, if it can be shown that nothing is missing there, and nothing too much was told.
///
/// After a promotion `run` refuses: the timeline is another. This command asks the server where its timeline branched off,
/// reads on Kafka up to which commit anything was told, and looks at the slot. If all that was told was committed before the
/// branch, and the slot came along and is not past what was acknowledged, it writes the new timeline to the relay's memory,
/// and `run` goes on, in the same chain of positions. Nothing else is changed. If it cannot be shown it says why, and
/// `cdc-relay reconcile` is the way on.
///
/// The slot comes along if it is a failover slot (PostgreSQL 17 and newer). What was told is on the standby, whatever
/// happens, if synchronized_standby_slots names its physical slot. The old primary must be gone for good: what it
/// still commits is on no one's timeline.
///
/// What RabbitMQ was told cannot be read back. A source with routes to a queue needs --yes for that. Events of tables
/// without an `id` in the routes are named after the timeline: those that are repeated get another id.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay failover --source payments          looks, and goes on if the source has no queue
  cdc-relay failover --source payments --yes --from 2026-11-24T00:00:00Z

Exit code 1: nothing was changed, and the answer says why.")]
pub struct Options {
    #[command(flatten)]
    routes: RoutesArgs,
    /// Goes on though the queue cannot be looked into.
    #[arg(long)]
    yes: bool,
    /// Reads on Kafka only what was told since: some time at which the old primary was surely well.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
}

/// What was found, and what came of it.
#[derive(Debug, Serialize)]
struct Report {
    source: String,
    /// The memory was changed: `run` goes on.
    done: bool,
    /// Why not.
    obstacle: Option<String>,
    timeline: u32,
    /// Of the memory, before.
    told_timeline: Option<u32>,
    branched_off: Option<String>,
    /// The last commit that the memory knows to be told, and the last that a record on Kafka is of.
    told: Option<String>,
    newest_on_kafka: Option<String>,
    acknowledged: Option<String>,
    slot: String,
    confirmed: Option<String>,
    /// The source has routes to a queue, which cannot be read.
    queue: bool,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = options.routes.read()?;
    let [source] = routes.sources.as_slice() else {
        return Err(Failure::usage("--source: which of the sources?".to_owned()));
    };
    let source = source.clone();
    let report = work(options, routes, &source)?;
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&text(&report))?;
    }
    Ok(if report.done { Ending::Fine } else { Ending::Bad })
}

/// The server's side of it.
struct Server {
    cluster: Cluster,
    database: String,
    history: String,
    slot: Option<Slot>,
}

fn look(source: &Source) -> Result<Server> {
    let config = crate::run::database(source)?;
    let mut session = Session::connect(&config)?;
    let (cluster, database) = inspect::cluster(&mut session)?;
    let history = inspect::history(&mut session, cluster.timeline)?;
    let slot = inspect::slot(&mut session, source.slot.get_ref())?;
    Ok(Server { cluster, database, history, slot })
}

/// The last commit of the source that a record on Kafka is of.
fn newest(options: &Options, routes: &Routes, source: &Source) -> Result<Lsn> {
    let event_source = source.event_source.get_ref();
    let sources = BTreeMap::from([(source.name.get_ref().clone(), event_source.clone())]);
    let brokers = &options.kafka.kafka_brokers;
    let mut reading = Reading::connect(brokers, routes, told_to(routes), options.from)?;
    reading.all(Some(&sources))?;
    Ok(reading.newest(event_source))
}

/// On a runtime: its thread is what clients of Kafka are made on.
#[tokio::main(worker_threads = 1)]
async fn work(options: &Options, routes: Routes, source: &Source) -> Result<Report> {
    let (options, source) = (options.clone(), source.clone());
    tokio::task::spawn_blocking(move || decide(&options, routes, &source)).await.context("the work ended")?
}

fn decide(options: &Options, routes: Routes, source: &Source) -> Result<Report> {
    let name = format!("{}/{}", source.name.get_ref(), source.slot.get_ref());
    let memory = super::memories(&options.kafka.kafka_brokers, &routes)?.remove(&name);
    let server = look(source)?;
    let newest = newest(options, &routes, source)?;
    let history = branches(&server.history);
    let judgement = judge(&Evidence {
        memory: memory.as_ref(),
        cluster: &server.cluster,
        database: &server.database,
        history: &history,
        slot: server.slot.as_ref(),
        newest,
    });
    let queue = source.tables.iter().flat_map(|table| &table.routes).any(|route| route.queue.is_some());
    let mut report = report(source, (memory.as_ref(), &server, newest), &judgement);
    report.queue = queue;
    match judgement {
        Ok(continuation) if options.yes || !queue => {
            remember(options, routes, source, &continuation.memory)?;
            report.done = true;
        }
        Ok(_) => report.obstacle = Some(UNREADABLE.to_owned()),
        Err(_) => {}
    }
    Ok(report)
}

const UNREADABLE: &str = "it fits, as far as Kafka shows. The source has routes to a queue, which cannot be read: unless \
     synchronized_standby_slots was set, a message may be there of a transaction that this server does not have. If \
     that can be borne: --yes";

fn report(
    source: &Source,
    (memory, server, newest): (Option<&Memory>, &Server, Lsn),
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
        timeline: server.cluster.timeline,
        told_timeline: memory.map(|memory| memory.timeline),
        branched_off: branch.map(|branch| branch.at.to_string()),
        told: memory.map(|memory| memory.told.to_string()),
        newest_on_kafka: (newest > Lsn::ZERO).then(|| newest.to_string()),
        acknowledged: memory.map(|memory| memory.acknowledged.to_string()),
        slot: source.slot.get_ref().clone(),
        confirmed: server.slot.as_ref().and_then(|slot| slot.confirmed).map(|lsn| lsn.to_string()),
        queue: false,
    }
}

fn remember(options: &Options, routes: Routes, source: &Source, memory: &Memory) -> Result<()> {
    let (metrics, routes) = (Metrics::new()?, Arc::new(routes));
    let without_queue = AmqpArgs { amqp_url: None };
    let wiring = Arc::new(crate::run::wiring((&options.kafka, &without_queue), &metrics, &routes, source)?);
    let mut clients = Clients::new(&wiring);
    clients.connect()?;
    clients.remember(Load::Handful, memory)
}

fn text(report: &Report) -> String {
    let Report { source, timeline, slot, .. } = report;
    let mut out = match &report.obstacle {
        None => format!("Source {source} goes on with timeline {timeline}.\n\n"),
        Some(obstacle) => format!("Nothing was changed: {obstacle}.\n\n"),
    };
    let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    let told = report.told_timeline.map_or_else(|| "none".to_owned(), |timeline| timeline.to_string());
    let mut rows = vec![
        ("timeline", format!("{timeline}; told: {told}")),
        ("told", format!("up to {}; newest on Kafka {}", or(&report.told), or(&report.newest_on_kafka))),
        ("slot", format!("{slot} at {}; acknowledged {}", or(&report.confirmed), or(&report.acknowledged))),
    ];
    if let Some(at) = &report.branched_off {
        rows.insert(1, ("branched off", at.clone()));
    }
    for (name, value) in rows {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "  {name:<14}{value}");
    }
    out += if report.done {
        "\n`cdc-relay run` goes on from the slot, in the same chain of positions.\n"
    } else {
        "\nIf it cannot be put right: `cdc-relay reconcile` tells every row again.\n"
    };
    out
}
