//! `cdc-relay resnapshot` emits every row again from a new slot.

use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::wiring::SinkClients;
use crate::commands::arguments::{AmqpArgs, RoutesArgs, only_source};
use crate::commands::outcome::{Ending, Outcome};
use crate::observe::metrics::Metrics;
use crate::routes::{Routes, Source, TableName};
use crate::source::backfill::resnapshot::{self, Plan, Planned, Report, Step};
use crate::source::context::SourceContext;

/// Emits every row again, from the snapshot of a new slot, after `run` refused.
///
/// Use it for a slot that is gone, lost, or was advanced by somebody else; a database that was restored or moved; a state
/// topic that was lost. It emits every row of every routed table as it is now, by the same routes, with the same ids, in
/// no particular order, and without `pg_position`. Then the source is ready for `run`, which streams the later commits.
/// Subscribers that had an event recognise it, if its id names the row and its version.
///
/// It cannot emit states that a row went through and no longer has, nor rows that were deleted.
///
/// While it works, `run` refuses the source. If it ends in the middle, run it again: it starts over. It needs `select` on
/// the tables. Stop a relay that reads the slot first; a relay that refuses or stands by may go on.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay resnapshot --source payments          shows its plan if there is a slot; else does it
  cdc-relay resnapshot --source payments --yes    drops the slot, and does it
  cdc-relay resnapshot --source payments --table orders
                                                 for a publication that left out rows of one table: the relay goes on
                                                 from the slot, and reads the rows of this table again

Exit code 1: there is a slot, and --yes was not given; nothing was changed.")]
pub struct Options {
    #[command(flatten)]
    pub routes: RoutesArgs,
    /// Allows to drop the slot, if there is one and nobody reads it.
    #[arg(long)]
    pub yes: bool,
    /// Only this table's rows, where the publication was broken and the slot is intact. Nothing is dropped: the relay goes
    /// on and reads the rows beside the stream. May be given several times.
    #[arg(long = "table", value_name = "[SCHEMA.]TABLE", conflicts_with = "yes")]
    pub tables: Vec<TableName>,
    /// Answers in JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub kafka: Brokers,
    #[command(flatten)]
    pub amqp: AmqpArgs,
}

pub fn execute(options: &Options) -> Outcome {
    let routes = super::wiring::routes(&options.routes, &options.amqp)?;
    let (routes, source) = super::wiring::resolved(&options.kafka, &routes, only_source(&routes)?)?;
    if !options.tables.is_empty() {
        print(options.json, &heal(options, routes, &source)?, healed)?;
        return Ok(Ending::Fine);
    }
    match work(options, routes, &source)? {
        resnapshot::Ending::Done(report) => {
            print(options.json, &report, done)?;
            Ok(Ending::Fine)
        }
        resnapshot::Ending::NotAgreed(plan) => {
            print(options.json, &plan, would)?;
            Ok(Ending::Bad)
        }
    }
}

fn context(options: &Options, routes: Routes, source: &Source) -> Result<SourceContext> {
    let sinks = SinkClients { kafka: &options.kafka, amqp: &options.amqp };
    super::wiring::context(&sinks, &Metrics::new()?, &Arc::new(routes), source)
}

/// The work blocks, so it has a thread of its own: the runtime's is for RabbitMQ.
#[tokio::main(worker_threads = 1)]
async fn work(options: &Options, routes: Routes, source: &Source) -> Result<resnapshot::Ending> {
    let context = context(options, routes, source)?;
    let (agreed, mut view) = (options.yes, View::new());
    let work = tokio::task::spawn_blocking(move || {
        let ending = resnapshot::run(context, agreed, &mut |step| view.show(step));
        view.bar.finish_and_clear();
        ending
    });
    work.await.context("the thread of the command panicked")?
}

/// Like `work`, for some tables.
#[tokio::main(worker_threads = 1)]
async fn heal(options: &Options, routes: Routes, source: &Source) -> Result<resnapshot::heal::Report> {
    let context = context(options, routes, source)?;
    let tables = options.tables.clone();
    let work = tokio::task::spawn_blocking(move || resnapshot::heal::run(context, &tables));
    work.await.context("the thread of the command panicked")?
}

fn healed(report: &resnapshot::heal::Report) -> String {
    let resnapshot::heal::Report { source, tables, healed, from } = report;
    let tables = tables.join(", ");
    format!(
        "\
Source {source} may go on from its slot. The break was: {healed}.
Beside the stream, the relay reads the rows of {tables} again, as they are at {from} or later.
Until then `cdc-relay verify` reports the break. Rows that were deleted in between cannot be emitted.
"
    )
}

fn print<A: serde::Serialize>(json: bool, answer: &A, text: fn(&A) -> String) -> Result<()> {
    let text = if json { serde_json::to_string_pretty(answer)? + "\n" } else { text(answer) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The progress: on a terminal a bar, elsewhere a line per table.
struct View {
    bar: ProgressBar,
    terminal: bool,
}

impl View {
    fn new() -> View {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let view = View { bar, terminal };
        view.style("{spinner} {msg} ({elapsed})");
        view.bar.enable_steady_tick(Duration::from_millis(120));
        view
    }

    fn line(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else {
            eprintln!("{line}");
        }
    }

    fn style(&self, template: &str) {
        // A template that does not parse leaves the style that is there.
        if let Ok(style) = ProgressStyle::with_template(template) {
            let speed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // Writing into the bar's buffer cannot fail.
                let _ = write!(out, "{} rows/s", HumanCount(state.per_sec() as u64));
            };
            self.bar.set_style(style.with_key("speed", speed).progress_chars("=> "));
        }
    }

    fn show(&mut self, step: Step<'_>) {
        match step {
            Step::Waits(what) => {
                self.style("{spinner} {msg} ({elapsed})");
                self.bar.set_message(what.to_owned());
                if !self.terminal {
                    self.line(what);
                }
            }
            Step::Table { name, estimate } => {
                // The estimate may be far off: a bar is shown only where there is one.
                self.bar.set_length(estimate.unwrap_or(0));
                self.bar.set_position(0);
                self.bar.reset_eta();
                self.style(if estimate.is_some() {
                    "{spinner} {msg} [{wide_bar}] {human_pos} of about {human_len} rows, {speed}"
                } else {
                    "{spinner} {msg} {human_pos} rows, {speed}"
                });
                self.bar.set_message(name);
            }
            Step::Rows(rows) => {
                // The bar must not be full before the table is.
                if self.bar.length().is_some_and(|length| length > 0 && rows > length) {
                    self.bar.set_length(rows);
                }
                self.bar.set_position(rows);
            }
            Step::TableDone(report) => {
                self.line(&format!("{}: {} rows", report.table, HumanCount(report.rows)));
            }
        }
    }
}

fn done(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["table", "rows", "to Kafka", "to RabbitMQ", "unrouted", "dead letters", "seconds"]);
    for report_of_table in &report.tables {
        let number = |number: u64| HumanCount(number).to_string();
        table.add_row([
            report_of_table.table.clone(),
            number(report_of_table.rows),
            number(report_of_table.kafka),
            number(report_of_table.rabbitmq),
            number(report_of_table.unrouted),
            number(report_of_table.dead_letters),
            format!("{:.1}", report_of_table.seconds),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let Report { source, slot, begins_at, seconds, .. } = report;
    let mut text = format!(
        "\
{table}

Source {source} is emitted and acknowledged, in {seconds:.1} s. Slot {slot} begins at {begins_at};
`cdc-relay run` goes on from there, in a new chain of positions.
"
    );
    let dead: u64 = report.tables.iter().map(|table| table.dead_letters).sum();
    if dead > 0 {
        text += &format!(
            "{} rows could not be emitted, or follow one of their key that could not. The dead-letter topic has them,\n\
             with the reason.\n",
            HumanCount(dead)
        );
    }
    text
}

fn would(plan: &Plan) -> String {
    let Plan { source, slot, refusal, drops, tables } = plan;
    let behind = match drops.lag_bytes {
        Some(bytes) => format!(", {} of WAL behind the present", HumanBytes(bytes)),
        None => String::new(),
    };
    let (confirmed, status) = (drops.confirmed.as_deref().unwrap_or("nothing"), &drops.wal_status);
    let rows = |table: &Planned| match table.estimated_rows {
        Some(rows) => format!("   {}: about {} rows", table.table, HumanCount(rows)),
        None => format!("   {}: the number of rows is unknown", table.table),
    };
    let tables: Vec<String> = tables.iter().map(rows).collect();
    let tables = tables.join("\n");
    let why = match refusal {
        Some(refusal) => format!("Why it is necessary: {refusal}"),
        None => {
            "It is not necessary: `cdc-relay run` would go on from the slot, and lose nothing.".to_owned()
        }
    };
    format!(
        "\
Nothing was changed. With --yes, source {source} would be emitted again so:

1. Slot {slot} is dropped (confirmed {confirmed}{behind}; {status}).
   The changes since then are lost. Their rows are emitted as they are now, but not the states in between, nor rows
   that were deleted.
2. The slot is created again, and every row is emitted again from its snapshot:
{tables}
3. `cdc-relay run` streams what is committed from then on, in a new chain of positions.

{why}
"
    )
}
