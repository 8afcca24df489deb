//! `cdc-relay remove` removes a source, and leaves nothing of the relay behind.

mod text;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use brokers::Brokers;
use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde::Serialize;

use self::text::text;
use crate::commands::arguments::{JsonArgs, RoutesArgs};
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::commands::runtime::block_on;
use crate::commands::terminal::print;
use crate::postgres::error::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::routes::destinations::Destinations;
use crate::routes::{Routes, Source};
use crate::sinks::kafka::client_config;
use crate::sinks::topics::Reader;
use crate::source::backfill::snapshot;
use crate::source::coverage::record::record_key;
use crate::source::inspect;
use crate::source::published;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Removes a source: drops its slot and its own publication, and deletes its records in the state topic.
///
/// Without --yes it only prints its plan. It refuses while a relay streams. First stop every relay that has the source in
/// its routes file, since a relay that stands by would begin again. Everything that the relay did not create stays: a
/// publication that the routes file names, tables, roles, queues; dead letters stay too. Run it again until it ends with 0.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay remove --source shop                     prints the plan
  cdc-relay remove --source shop --yes               removes the source; the topics stay
  cdc-relay remove --source shop --topics --yes      also deletes the topics that only this source leads to
  cdc-relay remove --source shop --topics --topic shop.audit.old --yes
                                                     and the topic of a dropped table, whose name a pattern resembles

Exit codes: 0 nothing of the source is left, 1 nothing was changed since --yes is missing, 2 the command failed.")]
pub struct Options {
    #[command(flatten)]
    routes: RoutesArgs,
    #[command(flatten)]
    kafka: Brokers,
    /// Also deletes the topics that no other source of the routes file leads to, with all their records.
    #[arg(long)]
    topics: bool,
    /// With --topics: also this one, whose name a pattern or a template of the source resembles. May be given several times.
    #[arg(long = "topic", value_name = "TOPIC", requires = "topics")]
    named: Vec<String>,
    /// Removes the source.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// A source, and the routes file that it is in.
#[derive(Clone, Copy)]
struct Routed<'a> {
    routes: &'a Routes,
    source: &'a Source,
}

/// The parts of a source that exist.
#[derive(Debug, Default, Serialize)]
struct Found {
    source: String,
    slot: Option<SlotReport>,
    publication: Option<String>,
    /// The number of records in the state topic.
    records: usize,
    topics: Vec<String>,
    /// Topics whose names resemble the source's; they may be somebody else's. They stay unless they are named.
    resembled: Vec<String>,
    /// Whether the source is removed.
    done: bool,
    #[serde(skip)]
    keys: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SlotReport {
    name: String,
    /// Bytes of WAL that the server retains for the slot.
    retained_bytes: Option<i64>,
}

impl Found {
    fn is_nothing(&self) -> bool {
        self.slot.is_none() && self.publication.is_none() && self.records == 0 && self.topics.is_empty()
    }
}

pub fn execute(options: &Options) -> Outcome {
    if options.routes.source.is_none() {
        return Err(Failure::usage("choose the source to remove by --source".to_owned()));
    }
    let all = RoutesArgs { source: None, ..options.routes.clone() }.read()?;
    let source = options.routes.read()?.sources.into_iter().next().context("no source")?;
    let brokers = &options.kafka;
    let database = super::wiring::database_of_checkpoint(brokers, &all, &source)?;
    let mut session = Session::connect(&database).context("the database of the source")?;
    let mut found = found(&mut session, &source)?;
    found.keys = keys(brokers, &all, &source)?;
    found.records = found.keys.len();
    if options.topics {
        find_topics(&mut session, options, Routed { routes: &all, source: &source }, &mut found)?;
    }
    found.done = found.is_nothing() || options.yes;
    if options.yes {
        drop_all(&mut session, &found)?;
        delete_records(brokers, &all, &found.keys)?;
        block_on(delete(brokers, &all, &found.topics))?;
    }
    if options.json.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&found).context("JSON")?))?;
    } else {
        print(&text(&found, options))?;
    }
    Ok(if found.done { Ending::Fine } else { Ending::Bad })
}

fn found(session: &mut Session, source: &Source) -> Result<Found> {
    let name = source.slot.get_ref();
    let (_, database) = inspect::cluster(session)?;
    let slot = inspect::slot(session, name)?;
    if let Some(slot) = &slot {
        if let Some(pid) = slot.active_pid {
            bail!("slot {name} is being read (by the server's process {pid}): stop the relay first");
        }
        if let Some(what) = slot.foreign(&database) {
            bail!("slot {name} does not belong to the relay ({what}); nothing was changed");
        }
    }
    let retained = "select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), restart_lsn)::int8 \
                    from pg_catalog.pg_replication_slots where slot_name =";
    let retained = session.query(&format!("{retained} {}", sql::literal(name)))?;
    let retained = retained.first().and_then(|row| inspect::text(row, 0).parse().ok());
    let publication = source.publication.get_ref();
    let exists =
        format!("select 1 from pg_catalog.pg_publication where pubname = {}", sql::literal(publication));
    let made = source.own_publication && !session.query(&exists)?.is_empty();
    Ok(Found {
        source: source.name.get_ref().clone(),
        slot: slot.map(|_| SlotReport { name: name.clone(), retained_bytes: retained }),
        publication: made.then(|| publication.clone()),
        ..Found::default()
    })
}

/// The keys of the source's records in the state topic.
fn keys(brokers: &Brokers, routes: &Routes, source: &Source) -> Result<Vec<String>> {
    let topic = routes.relay.state_topic.get_ref();
    if !topics_of(brokers, routes)?.contains(topic) {
        return Ok(Vec::new());
    }
    let checkpoint = source.checkpoint_key();
    let publication = record_key(&checkpoint);
    let mut keys = BTreeSet::new();
    Reader::new(brokers, routes).read(topic, 0, |_, key, value| {
        let key = key.unwrap_or_default();
        let own = [checkpoint.as_bytes(), publication.as_bytes()];
        let ours = own.contains(&key) || snapshot::record_table(&checkpoint, key).is_some();
        if ours && let Ok(key) = std::str::from_utf8(key) {
            if value.is_some() {
                keys.insert(key.to_owned())
            } else {
                keys.remove(key)
            };
        }
        Ok(())
    })?;
    Ok(keys.into_iter().collect())
}

/// Finds the topics that only this source leads to, and those that it resembles. Topics that another source may lead to
/// stay.
fn find_topics(
    session: &mut Session,
    options: &Options,
    Routed { routes: all, source }: Routed<'_>,
    found: &mut Found,
) -> Result<(), Failure> {
    let published = if source.has_patterns() {
        published::ask(session, source).context("the tables of the source")?.published
    } else {
        Vec::new()
    };
    let mut ours = all.resolved(source, &published, &BTreeSet::new());
    let mut others = all.clone();
    let name = source.name.get_ref();
    ours.sources.retain(|source| source.name.get_ref() == name);
    others.sources.retain(|source| source.name.get_ref() != name);
    let (ours, others) = (Destinations::of(&ours), Destinations::of(&others));
    let existing = topics_of(&options.kafka, all)?;
    let of_others = others.among(existing.iter().map(String::as_str));
    let mut unnamed: BTreeSet<&String> = options.named.iter().collect();
    for topic in existing.into_iter().filter(|topic| !of_others.contains(topic)) {
        let resembled = ours.resembles(&topic);
        if ours.certain.contains(&topic) || (resembled && unnamed.contains(&topic)) {
            unnamed.remove(&topic);
            found.topics.push(topic);
        } else if resembled {
            found.resembled.push(topic);
        }
    }
    match unnamed.first() {
        None => Ok(()),
        Some(topic) => Err(Failure::usage(format!(
            "--topic {topic}: source {name} does not lead to a topic of that name, or another source does too"
        ))),
    }
}

/// All topics of the brokers.
fn topics_of(brokers: &Brokers, routes: &Routes) -> Result<Vec<String>> {
    let consumer: BaseConsumer = client_config(brokers, routes).create().context("no Kafka consumer")?;
    let metadata = consumer.fetch_metadata(None, ADMIN_TIMEOUT).context("the brokers do not answer")?;
    let mut names: Vec<String> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Drops the slot first: while nobody reads it, the server retains WAL.
fn drop_all(session: &mut Session, found: &Found) -> Result<()> {
    if let Some(slot) = &found.slot {
        let drop = format!("select pg_catalog.pg_drop_replication_slot({})", sql::literal(&slot.name));
        session
            .query(&drop)
            .with_context(|| format!("slot {} cannot be dropped; nothing was changed", slot.name))?;
    }
    if let Some(publication) = &found.publication {
        let drop = format!("drop publication {}", sql::identifier(publication));
        match session.query(&drop) {
            Ok(_) => {}
            Err(PostgresError::Server { message, .. }) => {
                bail!(
                    "the publication cannot be dropped ({message}): have its owner run `{drop}`, then run this again"
                )
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes tombstones, so that the next start of such a source is a first one.
fn delete_records(brokers: &Brokers, routes: &Routes, keys: &[String]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut config = client_config(brokers, routes);
    config.set("acks", "all").set("message.timeout.ms", "15000");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().context("no Kafka producer")?;
    let topic = routes.relay.state_topic.get_ref();
    for key in keys {
        let tombstone: BaseRecord<'_, str, [u8]> = BaseRecord::to(topic).key(key);
        producer.send(tombstone).map_err(|(error, _)| error).with_context(|| format!("topic {topic}"))?;
    }
    producer.flush(ADMIN_TIMEOUT).with_context(|| format!("topic {topic} did not take the records"))?;
    ensure!(producer.in_flight_count() == 0, "topic {topic} did not take the records: run the command again");
    Ok(())
}

async fn delete(brokers: &Brokers, routes: &Routes, topics: &[String]) -> Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> =
        client_config(brokers, routes).create().context("no Kafka admin client")?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let options =
        AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT));
    for result in admin.delete_topics(&names, &options).await.context("cannot delete topics")? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((name, code)) => bail!("cannot delete topic {name}: {code}"),
        }
    }
    Ok(())
}
