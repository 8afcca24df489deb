//! `cdc-relay replay` emits chosen rows once more.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::{ArgGroup, Args};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::wiring::SinkClients;
use crate::commands::arguments::{AmqpArgs, RoutesArgs, only_source};
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::commands::terminal::notify;
use crate::observe::metrics::Metrics;
use crate::routes::{Routes, Source};
use crate::source::backfill::replay::{self, Rows, Selection, Shown, Summary};
use crate::source::clients::KafkaClients;

/// Events that a table on the terminal shows; JSON has all.
const SHOWN_EVENTS_MAX: usize = 100;

/// Emits rows of a table once more: as they are now, by their routes, with the same event ids.
///
/// Replay works while the relay runs, and repeats only rows that the relay has emitted: it waits until the relay has
/// emitted all present rows, and leaves out halted keys (see `release`). To emit rows to a new route, use `snapshot` in
/// the routes file, or `resnapshot`. A repeated event has no `pg_position`, and may follow later changes of its row;
/// consumers recognise it by its id.
///
/// The condition is your SQL. It is one statement, in a transaction that can only read.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("rows").required(true).args(["key", "condition", "since"])))]
#[command(after_help = "\
Exit code 1: some of the rows were not emitted (their key is halted, or they cannot be), or the question was not answered with yes.

Examples:
  cdc-relay replay --source shop --table orders --key 4711 --dry-run
  cdc-relay replay --source shop --table orders --where \"status = 'paid' and total > 100\" --yes
  cdc-relay replay --source shop --table orders --since 2h --column changed_at --yes")]
pub struct ReplayConfig {
    #[command(flatten)]
    pub routes: RoutesArgs,
    /// The table, as the routes name it.
    #[arg(long)]
    pub table: String,
    /// The rows with this Kafka key.
    #[arg(long, allow_hyphen_values = true)]
    pub key: Option<String>,
    /// The rows for which this SQL condition holds.
    #[arg(long = "where", value_name = "SQL")]
    pub condition: Option<String>,
    /// The rows whose --column is not before: a time (2026-11-24T12:00:00Z) or how long ago (2h, 15m).
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
    /// The column for --since; needed if several columns have a time.
    #[arg(long, requires = "since")]
    pub column: Option<String>,
    /// At most so many rows.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Shows what would be emitted, and emits nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Does it without a question.
    #[arg(long)]
    pub yes: bool,
    /// How long to wait for the relay to emit all present rows, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Answers in JSON; events of --dry-run one a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub kafka: Brokers,
    #[command(flatten)]
    pub amqp: AmqpArgs,
}

/// Parses a time, or a duration before now.
fn since(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "neither a time like 2026-11-24T12:00:00Z nor a duration like 2h".to_owned())?;
    jiff::Timestamp::now().checked_sub(ago.abs()).map_err(|error| error.to_string())
}

pub fn execute(config: &ReplayConfig) -> Outcome {
    let routes = super::wiring::routes(&config.routes, &config.amqp)?;
    let (routes, source) = super::wiring::resolved(&config.kafka, &routes, only_source(&routes)?)?;
    let rows = match (&config.key, &config.condition, config.since) {
        (Some(key), ..) => Rows::Key(key.clone()),
        (_, Some(condition), _) => Rows::Where(condition.clone()),
        (_, _, Some(at)) => Rows::Since { at, column: config.column.clone() },
        (None, None, None) => {
            return Err(Failure::usage("no rows are chosen: give --key, --where or --since".to_owned()));
        }
    };
    let database = super::wiring::database_of_checkpoint(&config.kafka, &routes, &source)?;
    let mut selection = Selection::open(database, &source, &config.table, &rows, config.limit)?;
    if config.dry_run {
        return dry_run(config, &mut selection, &routes, &source);
    }
    if !agreed(config, &selection)? {
        return Ok(Ending::Bad);
    }
    let since = Instant::now();
    let summary = work(config, selection, routes, &source)?;
    report(config, &summary, since.elapsed())
}

/// The work blocks, so it has a thread of its own: the runtime's is for RabbitMQ.
#[tokio::main(worker_threads = 1)]
async fn work(
    config: &ReplayConfig,
    mut selection: Selection,
    routes: Routes,
    source: &Source,
) -> Result<Summary> {
    let (metrics, routes) = (Metrics::new()?, Arc::new(routes));
    let context = Arc::new(super::wiring::context(
        &SinkClients { kafka: &config.kafka, amqp: &config.amqp },
        &metrics,
        &routes,
        source,
    )?);
    context.database.keep_to(selection.database.primary());
    let timeout = Duration::from_secs(config.timeout);
    let work = tokio::task::spawn_blocking(move || {
        let mut notices = Notices::default();
        selection.wait_until_emitted(&context.source, timeout, |notice| notices.print(notice))?;
        let mut clients = KafkaClients::new(&context);
        clients.connect()?;
        replay::emit(&mut selection, &context, &mut clients, &mut |notice| notices.print(notice))
    });
    work.await.context("the thread of the command panicked")?
}

/// Notices on standard error. One that differs from the last only in its numbers is not repeated.
#[derive(Default)]
struct Notices {
    last: String,
}

impl Notices {
    fn print(&mut self, notice: &str) {
        let kind: String = notice.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.last != kind {
            notify(notice);
            self.last = kind;
        }
    }
}

fn agreed(config: &ReplayConfig, selection: &Selection) -> Result<bool, Failure> {
    if config.yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "without a terminal, --yes is needed (--dry-run shows the events first)".to_owned(),
        ));
    }
    let mut err = std::io::stderr();
    let question =
        format!("Emits again, by the routes of {}:\n  {}\nGo on? [y/N] ", config.table, selection.sql());
    err.write_all(question.as_bytes()).and_then(|()| err.flush()).context("standard error")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("standard input")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// One event that would be emitted.
#[derive(Debug, Serialize)]
struct Event {
    destination: String,
    key: String,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subject: String,
    headers: Map<String, Json>,
    value: Json,
}

impl Event {
    fn of((destination, record, plan): Shown<'_>) -> Event {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = record.headers(plan).map(|(name, value)| (name.to_owned(), Json::from(text(value))));
        Event {
            destination: destination.to_owned(),
            key: text(&record.key),
            id: text(&record.id),
            kind: text(&record.kind),
            subject: text(&record.subject),
            headers: headers.collect(),
            // By a cast of the operator's, a body may not be JSON; it is shown as text.
            value: serde_json::from_slice(&record.value).unwrap_or_else(|_| Json::from(text(&record.value))),
        }
    }
}

fn dry_run(config: &ReplayConfig, selection: &mut Selection, routes: &Routes, source: &Source) -> Outcome {
    let mut out = std::io::stdout().lock();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["DESTINATION", "KEY", "ID", "TYPE", "BYTES"]);
    let mut events = 0usize;
    let summary = replay::show(selection, routes, source, |shown| {
        events += 1;
        let (_, record, _) = shown;
        if config.json {
            let line = serde_json::to_string(&Event::of(shown))?;
            writeln!(out, "{line}").context("standard output")?;
        } else if events <= SHOWN_EVENTS_MAX {
            let bytes = record.value.len().to_string();
            let Event { destination, key, id, kind, .. } = Event::of(shown);
            table.add_row([destination, key, id, kind, bytes]);
        }
        Ok(())
    })?;
    if !config.json {
        writeln!(out, "{}\n", table.trim_fmt()).context("standard output")?;
        if events > SHOWN_EVENTS_MAX {
            writeln!(out, "… and {} more (--json has them all)", events - SHOWN_EVENTS_MAX)
                .context("standard output")?;
        }
        let rows = summary.rows;
        writeln!(out, "{rows} rows, {events} events would be emitted; nothing was.")
            .context("standard output")?;
        failed(&summary, &mut out).context("standard output")?;
    }
    Ok(if summary.failed == 0 { Ending::Fine } else { Ending::Bad })
}

#[derive(Serialize)]
struct Report<'s> {
    rows: u64,
    /// By destination.
    emitted: &'s std::collections::BTreeMap<String, u64>,
    /// Events that were left out, since their key is halted.
    halted: u64,
    failed: u64,
    reasons: &'s [String],
    seconds: f64,
}

fn report(config: &ReplayConfig, summary: &Summary, elapsed: Duration) -> Outcome {
    let mut out = std::io::stdout().lock();
    let Summary { rows, tally, failed: bad, reasons } = summary;
    if config.json {
        let seconds = elapsed.as_secs_f64();
        let report = Report {
            rows: *rows,
            emitted: &tally.emitted,
            halted: tally.halted,
            failed: *bad,
            reasons,
            seconds,
        };
        writeln!(out, "{}", serde_json::to_string(&report).context("JSON")?).context("standard output")?;
    } else {
        let mut lines = || -> std::io::Result<()> {
            for (destination, events) in &tally.emitted {
                writeln!(out, "{destination}: {events} events emitted again")?;
            }
            if tally.halted > 0 {
                writeln!(
                    out,
                    "{} events left out: their keys are halted, so they were not emitted yet (see `dead-letters`)",
                    tally.halted
                )?;
            }
            failed(summary, &mut out)?;
            writeln!(out, "{rows} rows in {:.1} s, all acknowledged", elapsed.as_secs_f64())
        };
        lines().context("standard output")?;
    }
    Ok(if *bad == 0 && tally.halted == 0 { Ending::Fine } else { Ending::Bad })
}

fn failed(summary: &Summary, out: &mut impl Write) -> std::io::Result<()> {
    if summary.failed > 0 {
        writeln!(out, "{} events cannot be emitted: {}", summary.failed, summary.reasons.join("; "))?;
    }
    Ok(())
}
