//! `cdc-relay status` shows the state of each source on one screen.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use brokers::Brokers;
use clap::Args;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::{Deserialize, Serialize};

use self::text::text;
use crate::checkpoint::state::{Checkpoint, Phase};
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::commands::doctor::facts::{Slot, wal_rate};
use crate::commands::outcome::{Ending, Outcome};
use crate::commands::runtime::block_on;
use crate::commands::state_topic;
use crate::commands::terminal::{self, print};
use crate::dead_letter::halts::Halted;
use crate::dead_letter::record::DeadLetter;
use crate::postgres::connection_url::Database;
use crate::postgres::lsn::Lsn;
use crate::routes::destinations::Destinations;
use crate::routes::{Routes, Source};
use crate::sinks::kafka::client_config;
use crate::sinks::topics::Reader;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
const HEALTH_BYTES_MAX: u64 = 1 << 20;

/// Shows each source: its state, slot, retained WAL, checkpoint and dead letters, and the topics' ends.
///
/// Status asks the relay's admin listener, each database, and Kafka. It names those that do not answer and shows the
/// rest. It observes the WAL for a second to predict when the server invalidates a slot that nobody reads.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  KAFKA_BROKERS=broker:9092 cdc-relay status --routes relay.toml --admin 127.0.0.1:9600

Exit code: 0 if every source is streaming or standing by (or, where no relay answers, if every slot is being read),
1 otherwise. Sizes in --json are bytes, times seconds.")]
pub struct Options {
    #[command(flatten)]
    routes: RoutesArgs,
    #[command(flatten)]
    kafka: Brokers,
    /// The admin listener of the relay.
    #[arg(long = "admin", env = "ADMIN_ADDR", default_value = "127.0.0.1:9600", value_name = "ADDR:PORT")]
    admin: String,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether the admin listener answered.
    relay: bool,
    sources: Vec<SourceReport>,
    topics: BTreeMap<String, Topic>,
    dead_letters: u64,
    /// The parts that did not answer, and why.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SourceReport {
    source: String,
    /// As `/health` reports it: connecting, standby, streaming, refused.
    state: Option<String>,
    detail: Option<String>,
    /// The transaction that waits for synchronous standbys, and why.
    held: Option<String>,
    slot: String,
    slot_status: Option<SlotStatus>,
    checkpoint: Option<SavedCheckpoint>,
    halted_keys: usize,
}

/// The slot as its server describes it.
#[derive(Debug, Serialize)]
struct SlotStatus {
    active: bool,
    confirmed: Option<String>,
    lag_bytes: i64,
    retained_bytes: i64,
    wal_status: Option<String>,
    /// WAL that may be written before the server invalidates the slot; `None` without a limit.
    safe_bytes: Option<i64>,
    wal_bytes_per_second: f64,
    /// Until the server invalidates the slot at the present rate, if nobody reads it.
    seconds_left: Option<f64>,
}

/// The checkpoint on the state topic.
#[derive(Debug, Serialize)]
struct SavedCheckpoint {
    phase: &'static str,
    system_id: String,
    timeline: u32,
    acknowledged: String,
    sent_lsn: String,
    /// The chain that the slot sends, as `pg_chain` names it.
    chain_name: String,
    /// The commit that the chain of positions continues from.
    chain: String,
    /// Synchronous standbys had flushed everything before it was emitted.
    synchronous: bool,
}

impl From<&Checkpoint> for SavedCheckpoint {
    fn from(checkpoint: &Checkpoint) -> SavedCheckpoint {
        SavedCheckpoint {
            phase: match checkpoint.phase {
                Phase::Creating => "creating",
                Phase::Streaming => "streaming",
                Phase::Resnapshot => "resnapshotting",
            },
            system_id: checkpoint.system_id.clone(),
            timeline: checkpoint.timeline,
            acknowledged: checkpoint.acknowledged.to_string(),
            sent_lsn: checkpoint.sent_lsn.to_string(),
            chain_name: checkpoint.chain_name.to_string(),
            chain: checkpoint.chain.to_string(),
            synchronous: checkpoint.synchronous,
        }
    }
}

#[derive(Debug, Serialize)]
struct Topic {
    partitions: usize,
    /// The sum of the partitions' ends.
    end: i64,
}

/// The answer of `/health`.
#[derive(Debug, Deserialize)]
struct Health {
    routes_file: RoutesFileHealth,
    sources: BTreeMap<String, SourceHealth>,
}

#[derive(Debug, Deserialize)]
struct RoutesFileHealth {
    problem: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct SourceHealth {
    state: String,
    detail: Option<String>,
    held: Option<String>,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = options.routes.read()?;
    let report = block_on(examine(options, &routes))?;
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&text(&report, terminal::colour()))?;
    }
    Ok(if report.sources.iter().all(is_streamed) { Ending::Fine } else { Ending::Bad })
}

/// Whether a relay streams the source or stands by for it.
fn is_streamed(source: &SourceReport) -> bool {
    match source.state.as_deref() {
        Some(state) => matches!(state, "streaming" | "standby"),
        None => source.slot_status.as_ref().is_some_and(|status| status.active),
    }
}

async fn examine(options: &Options, routes: &Routes) -> Result<Report> {
    let mut problems = Vec::new();
    let health = health(&options.admin);
    match &health {
        Ok(health) => problems.extend(health.routes_file.problem.clone()),
        Err(error) => problems.push(format!("the relay does not answer at {}: {error:#}", options.admin)),
    }
    let (checkpoints, dead_letters) = match kafka(&options.kafka, routes) {
        Ok(found) => found,
        Err(error) => {
            problems.push(format!("Kafka: {error:#}"));
            (BTreeMap::new(), DeadLetters::default())
        }
    };
    let mut sources = Vec::new();
    for source in &routes.sources {
        let (name, slot) = (source.name.get_ref().clone(), source.slot.get_ref().clone());
        let checkpoint = checkpoints.get(&source.checkpoint_key());
        let slot_status = slot_status(source, checkpoint).await.unwrap_or_else(|error| {
            problems.push(format!("source {name}: {error:#}"));
            None
        });
        let reported = health.as_ref().ok().and_then(|health| health.sources.get(&name)).cloned();
        let (state, detail, held) =
            reported.map_or_else(Default::default, |found| (Some(found.state), found.detail, found.held));
        let checkpoint = checkpoint.map(SavedCheckpoint::from);
        let halted = dead_letters.halted.iter().find(|halted| halted.source() == name);
        let halted_keys = halted.map_or(0, Halted::len);
        let detail = detail.filter(|detail| !detail.is_empty());
        sources.push(SourceReport {
            source: name,
            state,
            detail,
            held,
            slot,
            slot_status,
            checkpoint,
            halted_keys,
        });
    }
    let topics = ends(&options.kafka, routes).unwrap_or_default();
    Ok(Report { relay: health.is_ok(), sources, topics, dead_letters: dead_letters.count, problems })
}

fn health(admin: &str) -> Result<Health> {
    // The relay is asked itself: no proxy of the environment and no redirect comes between.
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .timeout_global(Some(ADMIN_TIMEOUT))
        .build();
    ensure!(admin.contains(':'), "--admin {admin}: HOST:PORT is needed");
    let mut answer = ureq::Agent::new_with_config(config).get(format!("http://{admin}/health")).call()?;
    let body = answer.body_mut().with_config().limit(HEALTH_BYTES_MAX);
    body.read_json().context("the answer is not that of a relay")
}

async fn slot_status(source: &Source, checkpoint: Option<&Checkpoint>) -> Result<Option<SlotStatus>> {
    let database: Database = source.url.get_ref().parse().context("url")?;
    database.keep_to(checkpoint.map(Into::into));
    let client = database.connect().await?;
    let rate = wal_rate(&client, false).await?;
    let query = "select pg_current_wal_flush_lsn()::text, (select to_jsonb(s) from pg_catalog.pg_replication_slots s \
                 where s.slot_name = $1)";
    let row = client.query_one(query, &[source.slot.get_ref()]).await.context("the slot")?;
    let (flush, slot): (String, Option<serde_json::Value>) = (row.get(0), row.get(1));
    let Some(slot) = slot else { return Ok(None) };
    let slot: Slot = serde_json::from_value(slot).context("pg_replication_slots")?;
    let number = |lsn: &str| lsn.parse::<Lsn>().map_or(0, |lsn| lsn.0 as i64);
    let confirmed = slot.confirmed_flush_lsn.as_deref().map_or(0, number);
    Ok(Some(SlotStatus {
        active: slot.active,
        lag_bytes: (number(&flush) - confirmed).max(0),
        retained_bytes: slot.retained(&flush),
        safe_bytes: slot.safe_wal_size,
        wal_bytes_per_second: rate,
        seconds_left: slot.safe_wal_size.filter(|_| rate > 0.0).map(|safe| safe.max(0) as f64 / rate),
        confirmed: slot.confirmed_flush_lsn,
        wal_status: slot.wal_status,
    }))
}

#[derive(Debug, Default)]
struct DeadLetters {
    count: u64,
    /// The keys that they halt, by source.
    halted: Vec<Halted>,
}

fn kafka(brokers: &Brokers, routes: &Routes) -> Result<(BTreeMap<String, Checkpoint>, DeadLetters)> {
    let checkpoints = state_topic::checkpoints(brokers, routes)?;
    let mut halted: Vec<Halted> =
        routes.sources.iter().map(|source| Halted::new(source.name.get_ref())).collect();
    let mut count = 0;
    Reader::new(brokers, routes).read(routes.relay.dead_letter_topic.get_ref(), 0, |offset, _, value| {
        let Some(value) = value else { return Ok(()) };
        count += u64::from(DeadLetter::read(value).context("a dead letter is not readable")?.is_some());
        halted.iter_mut().try_for_each(|halted| halted.apply(offset, value)).context("a dead letter")
    })?;
    Ok((checkpoints, DeadLetters { count, halted }))
}

fn ends(brokers: &Brokers, routes: &Routes) -> Result<BTreeMap<String, Topic>> {
    let consumer: BaseConsumer = client_config(brokers, routes).create().context("no Kafka consumer")?;
    let metadata = consumer.fetch_metadata(None, KAFKA_TIMEOUT)?;
    let mut topics = BTreeMap::new();
    let listed = routes.topics.iter().map(|topic| topic.name.get_ref().clone());
    let led_to = Destinations::of(routes).among(metadata.topics().iter().map(|topic| topic.name()));
    for name in listed.chain(led_to).collect::<BTreeSet<String>>() {
        let Some(known) = metadata.topics().iter().find(|known| known.name() == name) else { continue };
        let mut end = 0;
        for partition in known.partitions() {
            end += consumer.fetch_watermarks(&name, partition.id(), KAFKA_TIMEOUT)?.1;
        }
        let partitions = known.partitions().len();
        topics.insert(name, Topic { partitions, end });
    }
    Ok(topics)
}
