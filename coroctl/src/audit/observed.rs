//! Everything that the checks compare, read once.
//!
//! * An effect is read before its cause, so whatever effect is here, its cause is here too. This is why most checks
//!   hold in the middle of a load.
//! * Each database is read in one snapshot.
//! * A target without an address leaves its part empty.

use std::collections::{BTreeMap, BTreeSet};

use ::brokers::Brokers;
use anyhow::{Context, Result};
use tokio_postgres::{Client, IsolationLevel, Transaction};
use uuid::Uuid;

use super::Options;
use super::connections::Connections;
use super::read::brokers::{self, Group, GroupLag, KafkaContents};
use super::read::events::{FlaggedRecord, PublishedEvents, TopicOffset};
use super::read::gateway::{self, GatewayLedger};
use super::read::money::{self, MoneyTallies};
use super::read::notifications::{self, Notifications};
use super::read::relay::{self, Checkpoint, Cluster};
use super::read::rows::{self, Charges, Ledger, ParkedMessage, Payments};
use super::read::search::{self, SearchDocuments};
use super::targets::{Target, Targets};

/// The sides that subscribers make of events, where they are part of the system.
#[derive(Debug, Default)]
pub struct DerivedData {
    pub search: SearchDocuments,
    pub notifications: Notifications,
    /// The messages that the fraud detector has parked.
    pub fraud_parked: Vec<ParkedMessage>,
}

/// All sides of the saga at about one moment.
#[derive(Debug, Default)]
pub struct Observed {
    pub money: MoneyTallies,
    pub payments: Payments,
    pub ledger: Ledger,
    pub charges: Charges,
    pub events: PublishedEvents,
    pub dead_letters: Vec<FlaggedRecord>,
    pub checkpoints: Vec<Checkpoint>,
    /// By the relay's name of the source.
    pub clusters: BTreeMap<&'static str, Cluster>,
    pub gateway: GatewayLedger,
    pub derived: DerivedData,
    pub lags: Vec<GroupLag>,
    /// Messages in the work queue.
    pub queue_depth: u32,
    /// Parked messages: topic/partition/offset, without the prefix of topics.
    pub parked_ids: BTreeSet<String>,
    pub explained: BTreeSet<String>,
    pub accepted: Vec<Uuid>,
}

/// One state of a database, however long it is read.
async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    transaction.read_only(true).start().await.context("cannot begin a snapshot")
}

/// Ids of records without the prefix of topics.
fn unprefixed<'a>(ids: impl IntoIterator<Item = &'a String>, prefix: &str) -> BTreeSet<String> {
    ids.into_iter().map(|id| id.strip_prefix(prefix).unwrap_or(id).to_owned()).collect()
}

impl Observed {
    /// Reads every target that has an address.
    pub async fn read(targets: &Targets, connections: &mut Connections, options: &Options) -> Result<Self> {
        let mut observed = Self {
            explained: options.explained.clone(),
            accepted: options.accepted.clone(),
            ..Self::default()
        };
        for (name, client) in connections.by_source() {
            observed.clusters.insert(name, relay::cluster(client).await.context(name)?);
        }
        observed.derived.search = search::read(connections.search.as_ref(), targets).await?;
        if let Some(brokers) = targets.kafka() {
            let groups = brokers::groups(targets, search::group(connections.search.as_ref()).await?);
            observed.read_kafka(brokers, targets, groups).await?;
        }
        if let Some(url) = targets.address(Target::Queue) {
            observed.queue_depth = brokers::queue_depth(url, &targets.queue).await?;
        }
        observed.read_databases(connections).await?;
        if let Some(url) = targets.address(Target::Gateway) {
            observed.gateway = gateway::read(url).await?;
        }
        // A charge that had no row, or no call, when the rows were read may have one by now.
        let later = observed.charges_without_intent();
        if let (Some(client), false) = (&connections.processor, later.is_empty()) {
            rows::charges_again(client, &later, &mut observed.charges).await?;
        }
        observed.collect_parked_ids(&targets.topic_prefix);
        Ok(observed)
    }

    async fn read_kafka(&mut self, brokers: Brokers, targets: &Targets, groups: Vec<Group>) -> Result<()> {
        let targets = targets.clone();
        let explained = unprefixed(&self.explained, &targets.topic_prefix);
        let read = move || {
            Ok((
                brokers::group_lags(&brokers, &targets, &groups)?,
                brokers::read_kafka(&brokers, &targets, explained)?,
            ))
        };
        let contents: Result<(Vec<GroupLag>, KafkaContents)> = tokio::task::spawn_blocking(read).await?;
        let (lags, KafkaContents { events, dead_letters, checkpoints }) =
            contents.context("cannot read Kafka")?;
        (self.lags, self.events) = (lags, events);
        (self.dead_letters, self.checkpoints) = (dead_letters, checkpoints);
        Ok(())
    }

    /// Notifications before payments before the ledger before charges: a payment's end before the money's move before its
    /// reason.
    async fn read_databases(&mut self, connections: &mut Connections) -> Result<()> {
        if let Some(client) = &mut connections.notifier {
            let transaction = snapshot(client).await?;
            self.derived.notifications =
                notifications::read(&transaction).await.context("notifier database")?;
        }
        if let Some(client) = &connections.fraud {
            self.derived.fraud_parked = rows::parked(client).await.context("fraud database")?;
        }
        if let Some(client) = &mut connections.payments {
            let transaction = snapshot(client).await?;
            self.payments = rows::payments(&transaction).await.context("payments database")?;
        }
        if let Some(client) = &mut connections.balance {
            let transaction = snapshot(client).await?;
            self.ledger = rows::ledger(&transaction).await.context("balance database")?;
            self.money = money::read(&transaction).await.context("balance database")?;
        }
        if let Some(client) = &mut connections.processor {
            let transaction = snapshot(client).await?;
            self.charges = rows::charges(&transaction).await.context("processor database")?;
        }
        Ok(())
    }

    /// Charges at the gateway without a row, or with a row that says that no call was made.
    pub fn charges_without_intent(&self) -> Vec<Uuid> {
        let intended =
            |id: &Uuid| self.charges.rows.get(id).is_some_and(|row| !row.status.was_never_called());
        let charged = self.gateway.net.iter().filter(|(_, net)| net.charges > 0);
        charged.filter(|(id, _)| !intended(id)).map(|(id, _)| *id).collect()
    }

    /// Collects the ids of parked messages.
    pub fn collect_parked_ids(&mut self, topic_prefix: &str) {
        let saga = [&self.payments.parked, &self.ledger.parked, &self.charges.parked];
        let derived = &self.derived;
        let derived = [&derived.search.parked, &derived.notifications.parked, &derived.fraud_parked];
        let ids = saga.into_iter().chain(derived).flatten().map(|message| &message.parked_id);
        self.parked_ids = unprefixed(ids, topic_prefix);
    }

    /// Whether a service or a subscriber has parked this record, topic/partition/offset, or somebody has explained it.
    pub fn is_known(&self, record: &str) -> bool {
        self.parked_ids.contains(record) || self.explained.contains(record)
    }

    /// Whether a subscriber has parked this record.
    pub fn is_parked(&self, topic: &str, (partition, offset): TopicOffset) -> bool {
        !self.parked_ids.is_empty() && self.parked_ids.contains(&format!("{topic}/{partition}/{offset}"))
    }
}
