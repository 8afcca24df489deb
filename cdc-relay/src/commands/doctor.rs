//! `cdc-relay doctor`: what would lose data, and what puts it right. Facts are gathered in few questions; each check is
//! a pure function of them.

#[cfg(feature = "sinks")]
mod brokers;
pub mod facts;
mod finding;
mod idle;
mod limits;
mod patterns;
#[cfg(feature = "sinks")]
mod queues;
mod report;
mod server;
pub mod slot;
mod start;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::facts::Facts;
use self::finding::{Finding, Severity};
use self::report::{Report, Section};
use self::start::{Judged, Saved};
use self::tables::Contract;
use super::{Ending, Failure, Outcome, block_on, print, terminal};
use crate::checkpoint::state::Checkpoint;
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::postgres::connection_url::Database;
use crate::postgres::facts::ask_client;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::contract::literals;
use crate::source::coverage::record::Record;
use anyhow::{Context, Result};
use clap::Args;

/// Checks whether anything would be lost, and prints the fix for each finding. Changes nothing.
///
/// With a connection string it looks at that database alone. With a routes file it looks at the database of each source, at
/// the topics and the queues, and compares each slot with what the relay saves. The rate of the WAL is measured for a
/// second, so that a limit can be given in hours.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay doctor postgres://user@host/db
  cdc-relay doctor postgres://user@host/db --publication events --slot cdc_relay
  KAFKA_BROKERS=broker:9092 cdc-relay doctor --routes relay.toml
  cdc-relay doctor --json | jq '.sections[].findings[] | select(.severity != \"ok\")'

Severities: ok, warning, would_not_work (the relay does not start, or a writer gets an error), would_lose_data.
Exit code: 0 if nothing is worse than a warning, 1 otherwise, 2 if a database could not be looked at.")]
pub struct Options {
    /// A database to look at, without a routes file.
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// With URL: the publication. Without it, every table is looked at as if it were to be published.
    #[arg(long, value_name = "NAME", requires = "url")]
    publication: Option<String>,
    /// With URL: the replication slot.
    #[arg(long, value_name = "NAME", requires = "url")]
    slot: Option<String>,
    /// The routes file: what is emitted, and where.
    #[arg(long = "routes", env = "RELAY_ROUTES", default_value = "relay.toml", value_name = "FILE")]
    file: PathBuf,
    /// Only this source of the routes file.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    #[cfg(feature = "sinks")]
    #[command(flatten)]
    kafka: Option<::brokers::Brokers>,
    #[cfg(feature = "sinks")]
    #[command(flatten)]
    amqp: crate::commands::arguments::AmqpArgs,
    #[command(flatten)]
    json: JsonArgs,
}

pub fn execute(options: &Options) -> Outcome {
    let report = match &options.url {
        Some(url) => {
            let database = url.parse().map_err(Failure::Usage)?;
            block_on(one(&database, options.publication.as_deref(), options.slot.as_deref()))??
        }
        None => {
            let routes = RoutesArgs { file: options.file.clone(), source: options.source.clone() };
            let routes =
                routes.read_or("without a routes file, give a connection string: cdc-relay doctor URL")?;
            block_on(all(&routes, options))??
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
async fn one(database: &Database, publication: Option<&str>, slot: Option<&str>) -> Result<Report> {
    let contract = Contract { publication, routed: None };
    let findings = looked(database, &contract, slot).await?;
    let section = Section { name: "database".to_owned(), place: database.to_string(), findings };
    let mut left = Vec::new();
    if slot.is_none() {
        left.push("the slot (--slot)".to_owned());
    }
    left.push("Kafka and RabbitMQ (they need a routes file: --routes)".to_owned());
    Ok(Report::new(vec![section], left))
}

/// Everything that the routes file names.
async fn all(routes: &Routes, options: &Options) -> Result<Report> {
    let (mut sections, mut left, mut states) = (Vec::new(), Vec::new(), None);
    sinks(routes, options, (&mut sections, &mut left, &mut states)).await?;
    let mut databases = Vec::new();
    for source in &routes.sources {
        let name = source.name.get_ref();
        let database: Database =
            source.url.get_ref().parse().with_context(|| format!("`url` of source {name}"))?;
        let key = source.checkpoint_key();
        let saved = states.as_ref().map(|(memories, records): &States| Saved {
            memory: memories.get(&key),
            record: records.get(&key),
        });
        let findings = source_findings(&database, (routes, source), saved).await?;
        databases.push(Section { name: format!("source {name}"), place: database.to_string(), findings });
    }
    databases.append(&mut sections);
    Ok(Report::new(databases, left))
}

/// The database of a source, with what the patterns of the routes file mean there.
async fn source_findings(
    database: &Database,
    (routes, source): (&Routes, &Source),
    saved: Option<Saved<'_>>,
) -> Result<Vec<Finding>> {
    let client = database.connect().await?;
    let (resolved, mut findings) = patterns::resolved(&client, (routes, source)).await?;
    let source = resolved.source(source.name.get_ref()).unwrap_or(source);
    let contract =
        Contract { publication: Some(source.publication.get_ref()), routed: Some((&resolved, source)) };
    let Judged { verdict, coverage } = start::judge(database, &resolved, source).await?;
    let facts = facts::gather(&client, (verdict.checked.facts, verdict.mismatches)).await?;
    let memory = saved.map(|saved| saved.memory);
    findings.extend(check(&facts, &contract, Some(source.slot.get_ref()), memory));
    findings.extend(saved.and_then(|saved| start::coverage(&facts, source, (saved, &coverage))));
    findings.extend(spelling_findings(database, source).await?);
    Ok(findings)
}

/// Literals of the routes that match one spelling of a value only. Asked by the relay's own session, whose settings decide
/// how values are printed.
async fn spelling_findings(database: &Database, source: &Source) -> Result<Vec<Finding>> {
    let (database, source) = (database.clone(), source.clone());
    let ask = move || literals::spellings(&mut Session::connect_to_read(&database)?, &source);
    let several = tokio::task::spawn_blocking(ask).await.context("asking what literals are")??;
    let doubt = |mismatch| Finding { severity: Severity::Warning, ..Finding::of(mismatch) };
    Ok(several.iter().map(doubt).collect())
}

/// Without routes.
async fn looked(database: &Database, contract: &Contract<'_>, slot: Option<&str>) -> Result<Vec<Finding>> {
    let client = database.connect().await?;
    let found = ask_client(&client, &contract.question()).await?;
    let harms = tables::harms(&found);
    let facts = facts::gather(&client, (found, harms)).await?;
    Ok(check(&facts, contract, slot, None))
}

/// Every check of a database. Pure.
fn check(
    facts: &Facts,
    contract: &Contract<'_>,
    slot: Option<&str>,
    memory: Option<Option<&Checkpoint>>,
) -> Vec<Finding> {
    let found = slot.and_then(|name| facts.slot(name));
    let exists = found.is_some();
    let mut findings = server::server(facts, found);
    findings.extend(limits::limits(facts, found));
    findings.extend(slot::failover(facts, slot));
    findings.extend(tables::publication(facts, contract, exists));
    // Of the server itself, `server` knows what puts it right.
    let said: Vec<&str> =
        findings.iter().filter(|f| f.severity > Severity::Warning).map(|f| f.check).collect();
    let more = tables::tables(facts, contract);
    findings
        .extend(more.into_iter().filter(|f| !(f.check.starts_with("server.") && said.contains(&f.check))));
    if let Some(name) = slot {
        let source = contract.routed.map(|(_, source)| source.name.get_ref().as_str());
        findings.extend(slot::slot(facts, name, memory));
        findings.extend(idle::own(facts, name, source));
    }
    findings.extend(idle::others(facts, slot));
    findings.extend(slot::retention(facts));
    findings
}

/// What the state topic saves, and of publications, by `source/slot`.
type States = (BTreeMap<String, Checkpoint>, BTreeMap<String, Record>);
type Found<'a> = (&'a mut Vec<Section>, &'a mut Vec<String>, &'a mut Option<States>);

#[cfg(feature = "sinks")]
async fn sinks(routes: &Routes, options: &Options, (sections, left, states): Found<'_>) -> Result<()> {
    match &options.kafka {
        None => left.push(
            "Kafka, and what the relay remembers there (neither KAFKA_BROKERS nor KAFKA_CONFIG is set)"
                .to_owned(),
        ),
        Some(servers) => {
            let facts = brokers::ask(servers, routes).await?;
            if facts.topics.contains_key(routes.relay.state_topic.get_ref()) {
                *states = Some((super::memories(servers, routes)?, super::records(servers, routes)?.0));
            } else {
                *states = Some((BTreeMap::new(), BTreeMap::new()));
            }
            if servers.signs_in() {
                left.push(
                    "whether the relay may write to its topics, which Kafka tells only to who writes"
                        .to_owned(),
                );
            }
            let findings = brokers::check(&facts, routes);
            sections.push(Section { name: "kafka".to_owned(), place: servers.servers.clone(), findings });
        }
    }
    if routes.queues.is_empty() {
        return Ok(());
    }
    match &options.amqp.amqp_url {
        None => left.push("RabbitMQ (AMQP_URL is not set)".to_owned()),
        Some(uri) => {
            let findings = queues::check(&queues::ask(uri, routes).await?);
            let place = uri.rsplit_once('@').map_or(uri.as_str(), |(_, place)| place).to_owned();
            sections.push(Section { name: "rabbitmq".to_owned(), place, findings });
            left.push(
                "RabbitMQ's policies, which AMQP does not show: `rabbitmqctl list_policies` should name none with \
                 max-length, message-ttl, expires or delivery-limit for these queues"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

#[cfg(not(feature = "sinks"))]
async fn sinks(_: &Routes, _: &Options, (_, left, _): Found<'_>) -> Result<()> {
    left.push("Kafka and RabbitMQ (this program was built without them)".to_owned());
    Ok(())
}

#[cfg(all(test, feature = "sinks"))]
#[path = "doctor/tests.rs"]
mod tests;
