//! `cdc-relay status`: what each source is doing, on one screen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::Args;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::{Deserialize, Serialize};

use super::doctor::facts::{Slot, wal_rate};
use super::doctor::slot::{duration, size};
use super::{Ending, Outcome, block_on, print, terminal};
use crate::checkpoint::state::Checkpoint;
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::dead_letter::halts::Halted;
use crate::dead_letter::record::DeadLetter;
use crate::postgres::connection_url::Database;
use crate::postgres::lsn::Lsn;
use crate::routes::destinations::Destinations;
use crate::routes::{Routes, Source};
use crate::sinks::kafka::client_config;
use crate::sinks::topics::Reader;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows what each source is doing: state, slot, log kept, memory, dead letters, and the topics' ends.
///
/// Asks the relay's admin listener, each database, and Kafka; what does not answer is said so, and the rest is shown.
/// The WAL is watched for a second, to say when a slot that is not read will be given up.
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
    sources: Vec<State>,
    topics: BTreeMap<String, Topic>,
    dead_letters: u64,
    /// What could not be looked at, and why.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct State {
    source: String,
    /// As the relay says: connecting, standby, streaming, refused.
    state: Option<String>,
    detail: Option<String>,
    slot: String,
    stand: Option<SlotStatus>,
    memory: Option<Checkpoint>,
    halted_keys: usize,
}

/// The slot, as its server says. Bytes, and bytes and seconds of log.
#[derive(Debug, Serialize)]
struct SlotStatus {
    active: bool,
    confirmed: Option<String>,
    behind: i64,
    retained: i64,
    wal_status: Option<String>,
    safe: Option<i64>,
    wal_per_second: f64,
    /// Until the server gives the slot up if nobody reads it, at the present rate.
    seconds_left: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Topic {
    partitions: usize,
    /// The sum of the partitions' ends.
    end: i64,
}

/// What /health answers.
#[derive(Debug, Deserialize)]
struct Health {
    sources: BTreeMap<String, SourceHealth>,
}

#[derive(Debug, Clone, Deserialize)]
struct SourceHealth {
    state: String,
    detail: Option<String>,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = options.routes.read()?;
    let report = block_on(look(options, &routes))??;
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&text(&report, terminal::colour()))?;
    }
    Ok(if report.sources.iter().all(goes) { Ending::Fine } else { Ending::Bad })
}

/// Whether the source is streamed.
fn goes(source: &State) -> bool {
    match source.state.as_deref() {
        Some(state) => matches!(state, "streaming" | "standby"),
        None => source.stand.as_ref().is_some_and(|stand| stand.active),
    }
}

async fn look(options: &Options, routes: &Routes) -> Result<Report> {
    let mut problems = Vec::new();
    let health = health(&options.admin);
    if let Err(error) = &health {
        problems.push(format!("the relay does not answer at {}: {error:#}", options.admin));
    }
    let (memories, letters) = match kafka(&options.kafka, routes) {
        Ok(found) => found,
        Err(error) => {
            problems.push(format!("Kafka: {error:#}"));
            (BTreeMap::new(), (0, Vec::new()))
        }
    };
    let mut sources = Vec::new();
    for source in &routes.sources {
        let (name, slot) = (source.name.get_ref().clone(), source.slot.get_ref().clone());
        let stand = stand(source).await.unwrap_or_else(|error| {
            problems.push(format!("source {name}: {error:#}"));
            None
        });
        let said = health.as_ref().ok().and_then(|health| health.sources.get(&name)).cloned();
        let (state, detail) = said.map_or((None, None), |said| (Some(said.state), said.detail));
        let memory = memories.get(&source.checkpoint_key()).cloned();
        let halted_keys = letters.1.iter().find(|halted| halted.source() == name).map_or(0, Halted::len);
        let detail = detail.filter(|detail| !detail.is_empty());
        sources.push(State { source: name, state, detail, slot, stand, memory, halted_keys });
    }
    let topics = ends(&options.kafka, routes).unwrap_or_default();
    Ok(Report { relay: health.is_ok(), sources, topics, dead_letters: letters.0, problems })
}

/// A question to a listener of ours on a private network: an HTTP client would be much for it.
fn health(admin: &str) -> Result<Health> {
    let address = admin.to_socket_addrs()?.next().context("no address")?;
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET /health HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(1 << 20).read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("not an answer of a relay")?;
    serde_json::from_str(body).context("not an answer of a relay")
}

async fn stand(source: &Source) -> Result<Option<SlotStatus>> {
    let database: Database = source.url.get_ref().parse().context("url")?;
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
        behind: (number(&flush) - confirmed).max(0),
        retained: slot.retained(&flush),
        safe: slot.safe_wal_size,
        wal_per_second: rate,
        seconds_left: slot.safe_wal_size.filter(|_| rate > 0.0).map(|safe| safe.max(0) as f64 / rate),
        confirmed: slot.confirmed_flush_lsn,
        wal_status: slot.wal_status,
    }))
}

type Letters = (u64, Vec<Halted>);

/// The memories, and the dead letters with the keys they halt.
fn kafka(brokers: &Brokers, routes: &Routes) -> Result<(BTreeMap<String, Checkpoint>, Letters)> {
    let memories = super::memories(brokers, routes)?;
    let mut halted: Vec<Halted> =
        routes.sources.iter().map(|source| Halted::new(source.name.get_ref())).collect();
    let mut count = 0;
    Reader::new(brokers, routes).read(routes.relay.dead_letter_topic.get_ref(), 0, |offset, _, value| {
        let Some(value) = value else { return Ok(()) };
        count += u64::from(DeadLetter::read(value).context("a dead letter is not readable")?.is_some());
        halted.iter_mut().try_for_each(|halted| halted.apply(offset, value)).context("a dead letter")
    })?;
    Ok((memories, (count, halted)))
}

fn ends(brokers: &Brokers, routes: &Routes) -> Result<BTreeMap<String, Topic>> {
    let consumer: BaseConsumer = client_config(brokers, routes).create().context("no Kafka consumer")?;
    let metadata = consumer.fetch_metadata(None, ANSWER_TIMEOUT)?;
    let mut topics = BTreeMap::new();
    let listed = routes.topics.iter().map(|topic| topic.name.get_ref().clone());
    let led_to = Destinations::of(routes).among(metadata.topics().iter().map(|topic| topic.name()));
    for name in listed.chain(led_to).collect::<BTreeSet<String>>() {
        let Some(known) = metadata.topics().iter().find(|known| known.name() == name) else { continue };
        let mut end = 0;
        for partition in known.partitions() {
            end += consumer.fetch_watermarks(&name, partition.id(), ANSWER_TIMEOUT)?.1;
        }
        let partitions = known.partitions().len();
        topics.insert(name, Topic { partitions, end });
    }
    Ok(topics)
}

fn text(report: &Report, colour: bool) -> String {
    use owo_colors::Style;
    let paint =
        |style: Style, text: &str| if colour { style.style(text).to_string() } else { text.to_owned() };
    let mut out = String::new();
    for source in &report.sources {
        let state = source.state.as_deref().unwrap_or(match &source.stand {
            Some(stand) if stand.active => "is being read",
            _ => "is not being read",
        });
        let style = if goes(source) { Style::new().green() } else { Style::new().red() };
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{}  {}", paint(Style::new().bold(), &source.source), paint(style, state));
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<14} {value}");
        };
        if let Some(detail) = &source.detail {
            line("why", detail.clone());
        }
        match &source.stand {
            None => line("slot", format!("{} does not exist, or its server does not answer", source.slot)),
            Some(stand) => {
                let confirmed = stand.confirmed.as_deref().unwrap_or("nothing");
                let (behind, kept) = (size(stand.behind), size(stand.retained));
                line("slot", format!("{}, confirmed up to {confirmed}", source.slot));
                let status = stand.wal_status.as_deref().unwrap_or("?");
                line("log", format!("{behind} behind, {kept} kept ({status}), {}", left(stand)));
                if !stand.active {
                    let name = crate::postgres::shell::word(&source.source);
                    let end = format!("start a relay, or take it out: cdc-relay remove --source {name}");
                    line("idle", format!("nobody reads the slot, and the server keeps WAL for it: {end}"));
                }
            }
        }
        match &source.memory {
            None => line("remembered", "nothing".to_owned()),
            Some(memory) => {
                let phase = format!("{:?}", memory.phase).to_lowercase();
                let Checkpoint { acknowledged, sent_lsn: told, .. } = memory;
                line("remembered", format!("acknowledged {acknowledged}, told {told}, {phase}"));
            }
        }
        if source.halted_keys > 0 {
            line("halted keys", source.halted_keys.to_string());
        }
        out.push('\n');
    }
    for (name, topic) in &report.topics {
        let _ = writeln!(out, "topic {name}: {} records, {} partitions", topic.end, topic.partitions);
    }
    let _ = writeln!(out, "dead letters: {}", report.dead_letters);
    report.problems.iter().for_each(|problem| {
        let _ = writeln!(out, "{}", paint(Style::new().yellow(), problem));
    });
    out
}

fn left(stand: &SlotStatus) -> String {
    let rate = size(stand.wal_per_second as i64);
    match (stand.safe, stand.seconds_left) {
        (None, _) => format!("no limit; the log grows by {rate}/s"),
        (Some(safe), None) => format!("{} until it is given up; the log does not grow", size(safe)),
        (Some(safe), Some(seconds)) => {
            format!("{} until it is given up: {} at {rate}/s", size(safe), duration(seconds))
        }
    }
}
