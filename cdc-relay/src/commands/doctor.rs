//! `cdc-relay doctor` finds settings that would lose data, and prints their fixes.
//!
//! * It gathers facts in few queries. Each check is a pure function of the facts.
//! * A check has a name that stays the same from release to release.

pub mod facts;
mod finding;
mod idle;
mod kinds;
mod limits;
mod patterns;
mod report;
mod server;
#[cfg(feature = "sinks")]
mod sinks;
pub mod slot;
mod standbys;
mod start;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::facts::Facts;
use self::finding::{Finding, Severity};
use self::report::{Report, Section};
use self::slot::SavedCheckpoint;
use self::start::{Judged, Saved};
use self::tables::{Contract, Routed};
use crate::checkpoint::state::Checkpoint;
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::commands::runtime::block_on;
use crate::commands::terminal::{self, print};
use crate::postgres::connection_url::Database;
use crate::postgres::facts::ask_client;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source, SynchronousRule};
use crate::source::contract::literals;
use crate::source::coverage::record::Record;
use anyhow::{Context, Result};
use clap::Args;

/// Checks whether anything would be lost, and prints the fix for each finding. Changes nothing.
///
/// With a connection string it checks that database alone. With a routes file it checks the database of each source, the
/// topics and the queues, and compares each slot with its checkpoint. It measures the rate of the WAL for a second, so
/// that it can state a limit in hours.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay doctor postgres://user@host/db
  cdc-relay doctor postgres://user@host/db --publication events --slot cdc_relay
  KAFKA_BROKERS=broker:9092 cdc-relay doctor --routes relay.toml
  cdc-relay doctor --json | jq '.sections[].findings[] | select(.severity != \"ok\")'

Severities: ok, warning, would_not_work (the relay does not start, or a writer gets an error), would_lose_data.
Exit code: 0 if nothing is worse than a warning, 1 otherwise, 2 if a database could not be checked.")]
pub struct Options {
    /// The database to check, without a routes file.
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// With URL: the publication. Without it, every table is checked as if it were to be published.
    #[arg(long, value_name = "NAME", requires = "url")]
    publication: Option<String>,
    /// With URL: the replication slot.
    #[arg(long, value_name = "NAME", requires = "url")]
    slot: Option<String>,
    /// The routes file: it says which rows are emitted, and where to.
    #[arg(long = "routes", env = "RELAY_ROUTES", default_value = "relay.toml", value_name = "FILE")]
    file: PathBuf,
    /// Only this source of the routes file.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    #[cfg(feature = "sinks")]
    #[command(flatten)]
    sinks: sinks::SinkArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// The findings about Kafka and RabbitMQ, and the contents of the state topic.
struct SinkReport {
    sections: Vec<Section>,
    /// The parts that were not checked, and why.
    not_checked: Vec<String>,
    /// `None`: the state topic was not read.
    saved: Option<SavedStates>,
}

/// By `source/slot`.
#[derive(Default)]
struct SavedStates {
    checkpoints: BTreeMap<String, Checkpoint>,
    records: BTreeMap<String, Record>,
}

#[cfg(not(feature = "sinks"))]
impl SinkReport {
    fn not_built(_: &Options) -> SinkReport {
        let not_checked = vec!["Kafka and RabbitMQ (this program was built without them)".to_owned()];
        SinkReport { sections: Vec::new(), not_checked, saved: None }
    }
}

pub fn execute(options: &Options) -> Outcome {
    let report = match &options.url {
        Some(url) => {
            let database = url.parse().map_err(Failure::Usage)?;
            block_on(check_database(&database, options.publication.as_deref(), options.slot.as_deref()))?
        }
        None => {
            let routes = RoutesArgs { file: options.file.clone(), source: options.source.clone() };
            let routes =
                routes.read_or("without a routes file, give a connection string: cdc-relay doctor URL")?;
            block_on(check_all(&routes, options))?
        }
    };
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report).context("JSON")?))?;
    } else {
        print(&report.text(terminal::width(), terminal::colour()))?;
    }
    Ok(if report.verdict > Severity::Warning { Ending::Bad } else { Ending::Fine })
}

/// One database, without routes.
async fn check_database(
    database: &Database,
    publication: Option<&str>,
    slot: Option<&str>,
) -> Result<Report> {
    let contract = Contract { publication, routed: None };
    let findings = findings_of(database, &contract, slot).await?;
    let section = Section { name: "database".to_owned(), place: database.to_string(), findings };
    let mut not_checked = Vec::new();
    if slot.is_none() {
        not_checked.push("the slot (--slot)".to_owned());
    }
    not_checked.push("Kafka and RabbitMQ (they need a routes file: --routes)".to_owned());
    Ok(Report::new(vec![section], not_checked))
}

/// Everything that the routes file names.
async fn check_all(routes: &Routes, options: &Options) -> Result<Report> {
    #[cfg(feature = "sinks")]
    let sinks = sinks::check(routes, &options.sinks).await?;
    #[cfg(not(feature = "sinks"))]
    let sinks = SinkReport::not_built(options);
    let SinkReport { mut sections, not_checked, saved } = sinks;
    let mut databases = Vec::new();
    for source in &routes.sources {
        let name = source.name.get_ref();
        let database: Database =
            source.url.get_ref().parse().with_context(|| format!("`url` of source {name}"))?;
        let key = source.checkpoint_key();
        let saved = saved
            .as_ref()
            .map(|saved| Saved { checkpoint: saved.checkpoints.get(&key), record: saved.records.get(&key) });
        let findings = source_findings(&database, Routed { routes, source }, saved).await?;
        databases.push(Section { name: format!("source {name}"), place: database.to_string(), findings });
    }
    databases.append(&mut sections);
    Ok(Report::new(databases, not_checked))
}

/// The database of a source, with what the patterns of the routes file mean there.
async fn source_findings(
    database: &Database,
    routed: Routed<'_>,
    saved: Option<Saved<'_>>,
) -> Result<Vec<Finding>> {
    let client = database.connect().await?;
    let (resolved, mut findings) = patterns::resolved(&client, routed).await?;
    let source = routed.source;
    let source = resolved.source(source.name.get_ref()).unwrap_or(source);
    let contract = Contract {
        publication: Some(source.publication.get_ref()),
        routed: Some(Routed { routes: &resolved, source }),
    };
    let Judged { verdict, coverage } = start::judge(database, &resolved, source).await?;
    let facts = facts::gather(&client, verdict.checked.facts, verdict.mismatches).await?;
    let checkpoint = match saved {
        None => SavedCheckpoint::NotRead,
        Some(Saved { checkpoint: None, .. }) => SavedCheckpoint::Nothing,
        Some(Saved { checkpoint: Some(checkpoint), .. }) => SavedCheckpoint::Saved(checkpoint),
    };
    findings.extend(check(&facts, &contract, Some(source.slot.get_ref()), checkpoint));
    findings.extend(saved.and_then(|saved| start::coverage(&facts, source, saved, &coverage)));
    findings.extend(spelling_findings(database, source).await?);
    Ok(findings)
}

/// Literals of the routes that match one spelling of a value only. The relay's own session asks, since its settings decide
/// how values are printed.
async fn spelling_findings(database: &Database, source: &Source) -> Result<Vec<Finding>> {
    let (database, source) = (database.clone(), source.clone());
    let ask = move || literals::spellings(&mut Session::connect_to_read(&database)?, &source);
    let several = tokio::task::spawn_blocking(ask).await.context("the query for literals ended")??;
    let doubt = |mismatch| Finding { severity: Severity::Warning, ..Finding::of(mismatch) };
    Ok(several.iter().map(doubt).collect())
}

/// Without routes.
async fn findings_of(
    database: &Database,
    contract: &Contract<'_>,
    slot: Option<&str>,
) -> Result<Vec<Finding>> {
    let client = database.connect().await?;
    let found = ask_client(&client, &contract.question()).await?;
    let harms = tables::harms(&found);
    let facts = facts::gather(&client, found, harms).await?;
    Ok(check(&facts, contract, slot, SavedCheckpoint::NotRead))
}

/// Every check of a database. Pure.
fn check(
    facts: &Facts,
    contract: &Contract<'_>,
    slot: Option<&str>,
    checkpoint: SavedCheckpoint<'_>,
) -> Vec<Finding> {
    let found = slot.and_then(|name| facts.slot(name));
    let exists = found.is_some();
    let mut findings = server::server(facts, found);
    findings.extend(limits::limits(facts, found));
    let rule = contract.routed.map_or(SynchronousRule::Off, |routed| routed.source.synchronous);
    findings.extend(slot::failover(facts, slot, rule == SynchronousRule::Require));
    findings.extend(standbys::standbys(facts, rule));
    findings.extend(contract.routed.into_iter().flat_map(|routed| kinds::kinds(facts, routed)));
    findings.extend(tables::publication(facts, contract, exists));
    // Where both know the same problem of the server, `server` knows the fix.
    let known: Vec<&str> =
        findings.iter().filter(|f| f.severity > Severity::Warning).map(|f| f.check).collect();
    let more = tables::tables(facts, contract);
    findings
        .extend(more.into_iter().filter(|f| !(f.check.starts_with("server.") && known.contains(&f.check))));
    if let Some(name) = slot {
        let source = contract.routed.map(|routed| routed.source.name.get_ref().as_str());
        findings.extend(slot::slot(facts, name, checkpoint));
        findings.extend(idle::own(facts, name, source));
    }
    findings.extend(idle::others(facts, slot));
    findings.extend(slot::retention(facts));
    findings
}

#[cfg(all(test, feature = "sinks"))]
#[path = "doctor/tests.rs"]
mod tests;
