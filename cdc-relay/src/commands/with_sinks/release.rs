//! `cdc-relay release` lets halted keys go on.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use brokers::Brokers;
use clap::Args;
use serde::Serialize;

use crate::commands::arguments::{RoutesArgs, only_source};
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::dead_letter::halts::Halts;
use crate::dead_letter::listing::HaltedKey;
use crate::dead_letter::release::{PREFIX, ReleaseOrder, ReleaseRecord};
use crate::postgres::connection_url::Database;
use crate::postgres::session::{LOGICAL_MESSAGES_VERSION, Session};
use crate::postgres::sql::literal;
use crate::routes::{Routes, Source};
use crate::sinks::topics::Reader;
use crate::source::inspect;

/// Between two reads of the dead-letter topic.
const TOPIC_INTERVAL: Duration = Duration::from_millis(100);

/// Lets halted keys go on, once the cause is removed.
///
/// The relay emits their dead letters in order, with the same event ids, before any later row of the key. A running relay
/// does it at the position in the WAL where this command writes a message; without one, the next start does it. A dead
/// letter that still cannot be emitted keeps its key halted from there on.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit code 1: a key stays halted, or the release is not done yet.

Examples:
  cdc-relay dead-letters
  cdc-relay release --source shop --key 4711
  cdc-relay release --source shop --destination topic:Orders --all")]
pub struct ReleaseConfig {
    #[command(flatten)]
    pub routes: RoutesArgs,
    /// Only towards this destination, as `dead-letters` lists it.
    #[arg(long, value_name = "topic:NAME|queue:NAME")]
    pub destination: Option<String>,
    /// The halted key.
    #[arg(long, required_unless_present_any = ["all", "keyless"], conflicts_with_all = ["all", "keyless"],
          allow_hyphen_values = true)]
    pub key: Option<String>,
    /// The row without a key, as `dead-letters` lists it.
    #[arg(long, value_name = "ROW", conflicts_with = "all", allow_hyphen_values = true)]
    pub keyless: Option<String>,
    /// Every halted key, and every row without one.
    #[arg(long)]
    pub all: bool,
    /// Skips dead letters that still cannot be emitted: their events are lost to the destination.
    #[arg(long)]
    pub skip: bool,
    /// How long to wait for the release, in seconds. It continues if it takes longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Prints the outcome of each key, as one JSON object a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub kafka: Brokers,
}

pub fn execute(config: &ReleaseConfig) -> Outcome {
    let routes = config.routes.read()?;
    let source = only_source(&routes)?;
    let reader = Reader::new(&config.kafka, &routes);
    let halted_keys: Vec<HaltedKey> = super::dead_letters::read(&reader, &routes)?;
    let named: Vec<&HaltedKey> = halted_keys.iter().filter(|key| names(config, key)).collect();
    if named.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!("no halted key matches: {}", listed(&halted_keys))));
    }
    if !config.halts().is_all()
        && let Some(whole) = named.iter().find(|key| key.halts.is_all())
    {
        return Err(Failure::Failed(anyhow::anyhow!(
            "every key is halted towards {0}, since a dead letter there may be of any key. Release all of them: \
             `--destination {0} --all`",
            whole.destination
        )));
    }
    let order = ReleaseOrder {
        id: format!("{:016x}", rand::random::<u64>()),
        source: source.name.get_ref().clone(),
        destination: config.destination.clone(),
        halts: config.halts(),
        skip: config.skip,
    };
    let end = end(&reader, &routes)?;
    let database = super::wiring::database_of_checkpoint(&config.kafka, &routes, source)?;
    let runs = write(&database, source, &order)?;
    let mut answer = Answer { json: config.json, out: std::io::stdout().lock() };
    if !runs {
        return answer.later(source);
    }
    let notes = wait(&reader, &routes, &order, end, Duration::from_secs(config.timeout))?;
    answer.notes(&notes, source)
}

impl ReleaseConfig {
    fn halts(&self) -> Halts {
        Halts { key: self.key.clone(), keyless: self.keyless.clone() }
    }
}

fn names(config: &ReleaseConfig, key: &HaltedKey) -> bool {
    let named = config.halts();
    (named.is_all() || key.halts.is_all() || named == key.halts)
        && config.destination.as_ref().is_none_or(|named| *named == key.destination)
}

/// The first few, as a hint.
fn listed(halted_keys: &[HaltedKey]) -> String {
    let name = |key: &HaltedKey| format!("{} towards {}", key.halts, key.destination);
    match halted_keys {
        [] => "no key is halted".to_owned(),
        some => {
            let first: Vec<String> = some.iter().take(5).map(name).collect();
            let more = if some.len() > 5 { ", …" } else { "" };
            format!("halted are {}{more} (see `cdc-relay dead-letters`)", first.join(", "))
        }
    }
}

fn end(reader: &Reader, routes: &Routes) -> Result<i64> {
    Ok(reader.open(routes.relay.dead_letter_topic.get_ref(), i64::MAX)?.end())
}

/// Writes the order into the WAL. Returns whether a relay reads the slot.
fn write(database: &Database, source: &Source, order: &ReleaseOrder) -> Result<bool> {
    let name = source.name.get_ref();
    let mut session = Session::connect(database)?;
    ensure!(
        session.version() >= LOGICAL_MESSAGES_VERSION,
        "source {name} runs PostgreSQL {}; a release needs {LOGICAL_MESSAGES_VERSION} or later",
        session.version()
    );
    let slot = source.slot.get_ref();
    let found = inspect::slot(&mut session, slot)?;
    let found =
        found.with_context(|| format!("slot {slot} does not exist: there is nothing to go on from"))?;
    let content = serde_json::to_string(order)?;
    session
        .query(&format!("select pg_logical_emit_message(true, {}, {})", literal(PREFIX), literal(&content)))
        .context("cannot write the order into the WAL")?;
    Ok(found.active_pid.is_some())
}

/// Waits for the record that ends the order. Returns all records of the order so far.
fn wait(
    reader: &Reader,
    routes: &Routes,
    order: &ReleaseOrder,
    mut offset: i64,
    timeout: Duration,
) -> Result<Vec<ReleaseRecord>> {
    let topic = routes.relay.dead_letter_topic.get_ref();
    let (until, mut notes) = (Instant::now() + timeout, Vec::<ReleaseRecord>::new());
    loop {
        offset = reader.read(topic, offset, |_, _, value| {
            // Other records are dead letters.
            let note = value.and_then(|value| serde_json::from_slice::<ReleaseRecord>(value).ok());
            notes.extend(note.filter(|note| note.order == order.id));
            Ok(())
        })?;
        if notes.last().is_some_and(|note| note.done) || Instant::now() > until {
            return Ok(notes);
        }
        std::thread::sleep(TOPIC_INTERVAL);
    }
}

struct Answer<'o> {
    json: bool,
    out: std::io::StdoutLock<'o>,
}

/// The outcome for a key, or for the whole order if `done`, as `--json` prints it.
#[derive(Serialize)]
struct KeyOutcome<'n> {
    source: &'n str,
    destination: &'n str,
    #[serde(flatten)]
    halts: &'n Halts,
    release: bool,
    order: &'n str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'n str>,
    emitted: u64,
    skipped: u64,
    done: bool,
}

impl<'n> From<&'n ReleaseRecord> for KeyOutcome<'n> {
    fn from(note: &'n ReleaseRecord) -> KeyOutcome<'n> {
        KeyOutcome {
            source: &note.source,
            destination: &note.destination,
            halts: &note.halts,
            release: note.release,
            order: &note.order,
            from: note.from,
            reason: note.reason.as_deref(),
            emitted: note.emitted,
            skipped: note.skipped,
            done: note.done,
        }
    }
}

#[derive(Serialize)]
struct Pending<'s> {
    source: &'s str,
    done: bool,
    detail: &'s str,
}

impl Answer<'_> {
    fn later(&mut self, source: &Source) -> Outcome {
        self.pending(
            source,
            "no relay reads the slot now; the next one that starts does it before anything later",
        )
    }

    fn pending(&mut self, source: &Source, detail: &str) -> Outcome {
        let source = source.name.get_ref();
        let line = if self.json {
            serde_json::to_string(&Pending { source, done: false, detail }).context("JSON")?
        } else {
            format!("Ordered: {detail}.")
        };
        writeln!(self.out, "{line}").context("standard output")?;
        Ok(Ending::Bad)
    }

    fn notes(&mut self, notes: &[ReleaseRecord], source: &Source) -> Outcome {
        // A relay that started over in between wrote some records twice; the later ones count.
        let begun = notes.split(|note| note.done).rfind(|part| !part.is_empty()).unwrap_or_default();
        for note in begun {
            let line = if self.json {
                serde_json::to_string(&KeyOutcome::from(note)).context("JSON")?
            } else {
                sentence(note)
            };
            writeln!(self.out, "{line}").context("standard output")?;
        }
        let Some(done) = notes.last().filter(|note| note.done) else {
            return self.pending(
                source,
                "the relay has not reached this position in the WAL yet, or is still emitting",
            );
        };
        if let (Some(reason), false) = (&done.reason, self.json) {
            writeln!(self.out, "{reason}").context("standard output")?;
        }
        let fine = done.reason.is_none() && begun.iter().all(|note| note.release);
        Ok(if fine { Ending::Fine } else { Ending::Bad })
    }
}

fn sentence(note: &ReleaseRecord) -> String {
    let key = &note.halts;
    let emitted = match note.emitted {
        1 => "1 row emitted".to_owned(),
        n => format!("{n} rows emitted"),
    };
    let skipped = match note.skipped {
        0 => String::new(),
        n => format!(", {n} skipped"),
    };
    let destination = &note.destination;
    match &note.reason {
        None => format!("{destination}, {key}: released; {emitted}{skipped}"),
        Some(reason) => format!("{destination}, {key}: stays halted; {emitted}{skipped}; then: {reason}"),
    }
}
