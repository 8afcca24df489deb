//! `cdc-relay dead-letters` lists halted keys.

use std::io::Write;

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::Args;
use comfy_table::{Table, presets};
use rdkafka::message::Message;

use crate::commands::arguments::RoutesArgs;
use crate::commands::outcome::{Ending, Outcome};
use crate::dead_letter::halts::Halts;
use crate::dead_letter::listing::{HaltedKey, Listing};
use crate::postgres::shell;
use crate::routes::Routes;
use crate::sinks::topics::{Reader, Step};

/// The length of a reason in the table.
const REASON_CHARS_MAX: usize = 100;

/// Lists the keys that are halted, why, and how to release each.
///
/// A row that cannot be emitted goes to the dead-letter topic. Later rows of its key follow it, in order, until the key is
/// released. Remove the cause (mostly: change the routes and restart the relay), then release the key.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit code 1: something is halted.

Example:
  cdc-relay dead-letters --routes relay.toml --json | jq -r .reason | sort | uniq -c")]
pub struct DeadLettersConfig {
    #[command(flatten)]
    pub routes: RoutesArgs,
    #[command(flatten)]
    pub kafka: Brokers,
    /// One JSON object a line for each halted key.
    #[arg(long)]
    pub json: bool,
    /// Shows at most so many keys; JSON has all.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

pub fn execute(config: &DeadLettersConfig) -> Outcome {
    let routes = config.routes.read()?;
    let reader = Reader::new(&config.kafka, &routes);
    let halted_keys = read(&reader, &routes)?;
    let mut out = std::io::stdout().lock();
    if config.json {
        for key in &halted_keys {
            writeln!(out, "{}", serde_json::to_string(&Line::of(key, &config.routes)).context("JSON")?)
                .context("standard output")?;
        }
    } else {
        show(&halted_keys, config, &mut out).context("standard output")?;
    }
    Ok(if halted_keys.is_empty() { Ending::Fine } else { Ending::Bad })
}

/// Every halted key of the routes file's sources.
pub fn read(reader: &Reader, routes: &Routes) -> Result<Vec<HaltedKey>> {
    let topic = routes.relay.dead_letter_topic.get_ref();
    let mut listing = Listing::new(routes.sources.iter().map(|source| source.name.get_ref().as_str()));
    const UNREADABLE: &str = "a dead letter is not readable";
    reader.read(topic, 0, |offset, _, value| {
        value.map_or(Ok(()), |value| listing.apply(offset, value)).context(UNREADABLE)
    })?;
    if let Some(from) = listing.from() {
        let mut reading = reader.open(topic, from)?;
        loop {
            match reading.next(std::time::Duration::from_millis(200))? {
                Step::Record(message) => {
                    let Some(value) = message.payload() else { continue };
                    let written = message.timestamp().to_millis();
                    let written = written.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
                    listing.count(message.offset(), value, written).context(UNREADABLE)?;
                }
                Step::Wait => {}
                Step::End => break,
            }
        }
    }
    Ok(listing.into_keys())
}

#[derive(serde::Serialize)]
struct Line<'s> {
    #[serde(flatten)]
    key: &'s HaltedKey,
    /// The command that releases it.
    release: String,
}

impl<'s> Line<'s> {
    fn of(key: &'s HaltedKey, routes: &RoutesArgs) -> Line<'s> {
        Line { key, release: command(key, routes) }
    }
}

fn key(halts: &Halts) -> String {
    match halts {
        Halts { key: Some(key), .. } => key.clone(),
        other => format!("({other})"),
    }
}

fn command(key: &HaltedKey, routes: &RoutesArgs) -> String {
    format!("cdc-relay release --routes {} {}", shell::quote(&routes.file.to_string_lossy()), key.release())
}

fn show(halted_keys: &[HaltedKey], config: &DeadLettersConfig, out: &mut impl Write) -> std::io::Result<()> {
    if halted_keys.is_empty() {
        return writeln!(out, "Nothing is halted.");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "SOURCE",
        "DESTINATION",
        "KEY",
        "DEAD LETTERS",
        "SINCE",
        "TABLE",
        "POSITION",
        "REASON",
    ]);
    for row in halted_keys.iter().take(config.limit) {
        let since = row.since.map(|time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
        table.add_row([
            row.source.clone(),
            row.destination.clone(),
            key(&row.halts),
            row.dead_letters.to_string(),
            since.unwrap_or_default(),
            row.table.clone(),
            row.position.clone(),
            row.reason.chars().take(REASON_CHARS_MAX).collect(),
        ]);
    }
    writeln!(out, "{}\n", table.trim_fmt())?;
    writeln!(out, "Once the cause is removed:")?;
    for row in halted_keys.iter().take(config.limit) {
        writeln!(out, "  {}", command(row, &config.routes))?;
    }
    let more = halted_keys.len().saturating_sub(config.limit);
    if more > 0 {
        writeln!(out, "… and {more} more (--limit, or --json for all)")?;
    }
    Ok(())
}
