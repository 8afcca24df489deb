//! `cdc-relay verify` reads topics once, and proves by their positions that nothing is missing.

mod read;
mod stretches;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

pub use self::read::{Reading, Wanted};
use self::stretches::Stretch;
use crate::checkpoint::chain::Findings;
use crate::checkpoint::chain_name::ChainName;
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::commands::outcome::{Ending, Outcome};
use crate::commands::terminal::{self, print};
use crate::routes::destinations::Destinations;
use crate::routes::{Relay, Routes, Source};

/// Proves from the topics alone that no transaction is missing, and that none came out of order.
///
/// Every record of the relay names its chain (pg_chain), its commit, its number in it, and the commit before it that emitted
/// anything (pg_position). A chain is what one slot sends. Verify reads all partitions once and follows each chain. The
/// records of a chain may be spread over several topics, and verify needs all of them: a routes file names them, dead letters
/// included. Compacted
/// topics of the file are not read, since their records have no position. Rows that replay or resnapshot emitted again have
/// no position and are only counted. No topic shows rows that the publication left out; the relay writes such breaks to the
/// state topic, and verify reads them there. The topics cannot show a missing last record of a transaction with several, or
/// a transaction after the newest record. A topic that was created again has a new beginning.
///
/// Memory: 16 bytes per record, until all partitions are read that far.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  KAFKA_BROKERS=broker:9092 cdc-relay verify --routes relay.toml
  cdc-relay verify --kafka-brokers broker:9092 --topic orders --topic customers
  cdc-relay verify --routes relay.toml --source shop --from 2026-11-24T00:00:00Z --json

Exit code: 0 if every chain is whole, 1 if something is missing or out of order, 2 if the topics cannot be read.")]
pub struct Options {
    #[command(flatten)]
    routes: RoutesArgs,
    #[command(flatten)]
    kafka: Brokers,
    /// These topics, instead of those of a routes file. Name all that the relay emits to.
    #[arg(long = "topic", short, value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only later commits; the proof then begins at the first record that every partition has.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    #[command(flatten)]
    json: JsonArgs,
}

/// The result for one chain.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The CloudEvents source of its events; empty if it has only dead letters.
    pub source: String,
    pub chain: ChainName,
    pub whole: bool,
    /// Records without a position: emitted again by replay or resnapshot.
    pub re_emitted: u64,
    #[serde(flatten)]
    pub findings: Findings,
    /// Stretches in which the publication sent less than the routes expect, or may have.
    pub may_be_missing: Vec<Stretch>,
}

impl Verdict {
    fn of(source: String, chain: ChainName) -> Verdict {
        Verdict {
            source,
            chain,
            whole: true,
            re_emitted: 0,
            findings: Findings::default(),
            may_be_missing: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    whole: bool,
    /// Records read.
    records: u64,
    chains: Vec<Verdict>,
    /// The parts that verify could not check, and why.
    notes: Vec<String>,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = if options.topics.is_empty() {
        Some(options.routes.read_or("without a routes file, name the topics: --topic")?)
    } else {
        None
    };
    let report = verify(options, routes.as_ref())?;
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&text(&report, terminal::colour()))?;
    }
    Ok(if report.whole { Ending::Fine } else { Ending::Bad })
}

fn verify(options: &Options, routes: Option<&Routes>) -> Result<Report> {
    let brokers = &options.kafka;
    let topics = routes.map_or_else(|| options.topics.clone(), topics_of);
    let (relay, kafka) = (Relay::default(), BTreeMap::new());
    let lists_topics = true;
    let none =
        Routes { relay, kafka, lists_topics, topics: Vec::new(), queues: Vec::new(), sources: Vec::new() };
    let name = |source: &Source| (source.name.get_ref().clone(), source.event_source.get_ref().clone());
    let wanted = match (routes, &options.routes.source) {
        (None, _) => Wanted::All,
        (Some(_), Some(source)) => Wanted::One(source.clone()),
        (Some(routes), None) => Wanted::Listed(routes.sources.iter().map(name).collect()),
    };
    let mut reading = Reading::connect(brokers, routes.unwrap_or(&none), topics, options.from)?;
    reading.all(&wanted)?;
    let (records, mut verdicts, mut notes) = reading.judge(&wanted);
    match routes.map(|routes| stretches::read(brokers, routes)).transpose()? {
        Some(Some(found)) => stretches::judge(&mut verdicts, found),
        Some(None) => {
            notes.push("there is no state topic, so breaks of the publication are unknown".to_owned());
        }
        None => notes.extend([
            "only the named topics were read: transactions whose events went to other topics look like gaps"
                .to_owned(),
            "without a routes file, breaks of the publication are unknown".to_owned(),
        ]),
    }
    if verdicts.is_empty() {
        notes.push(
            "no record has a position: the relay emitted nothing, or only emitted rows again".to_owned(),
        );
    }
    Ok(Report { whole: verdicts.iter().all(|verdict| verdict.whole), records, chains: verdicts, notes })
}

/// The topics that the sources' routes certainly lead to and that have positions, and the dead-letter topic.
pub fn topics_of(routes: &Routes) -> Vec<String> {
    let certain = Destinations::of(routes).certain.into_iter();
    let certain = certain.filter(|name| !routes.is_compacted(name));
    certain.chain([routes.relay.dead_letter_topic.get_ref().clone()]).collect()
}

fn text(report: &Report, colour: bool) -> String {
    use owo_colors::Style;
    let paint =
        |style: Style, text: &str| if colour { style.style(text).to_string() } else { text.to_owned() };
    let mut out = format!("{} records read\n", report.records);
    for verdict in &report.chains {
        let found = &verdict.findings;
        let says = if verdict.whole {
            paint(Style::new().green(), "the chain is whole")
        } else {
            paint(Style::new().red(), "the chain is broken")
        };
        // Writing into a String cannot fail.
        let name = if verdict.source.is_empty() { verdict.chain.as_str() } else { &verdict.source };
        let _ = writeln!(out, "\n{}: {says}", paint(Style::new().bold(), name));
        if let Some(problem) = &found.problem {
            let _ = writeln!(out, "  first problem: {problem}");
        }
        let range = |end: &Option<String>| end.clone().unwrap_or_else(|| "nothing".to_owned());
        let mut rows = vec![
            ("transactions", found.transactions),
            ("events, first emitted", found.events),
            ("repeated after a crash", found.repeated),
            ("re-emitted, without position", verdict.re_emitted),
            ("beginnings", found.beginnings),
            ("gaps", found.gaps),
            ("records missing in transactions", found.missing_records),
            ("out of order", found.out_of_order),
        ];
        let optional =
            [("older than all partitions reach", found.before_start), ("too new to judge", found.not_judged)];
        rows.extend(optional.into_iter().filter(|(_, count)| *count > 0));
        for (name, count) in rows {
            let _ = writeln!(out, "  {name:<32} {count:>12}");
        }
        let _ = writeln!(
            out,
            "  {}, from commit {} to {}",
            verdict.chain,
            range(&found.first),
            range(&found.last)
        );
        for Stretch { what, since, until } in &verdict.may_be_missing {
            let _ = match until {
                None => writeln!(out, "  not whole after {since}, until `cdc-relay resnapshot`: {what}"),
                Some(until) => writeln!(
                    out,
                    "  nothing is known between {since} and {until}, where all rows were read again: {what}"
                ),
            };
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, "\nNote: {note}.");
    }
    out
}
