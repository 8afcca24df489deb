//! Everything that the checks compare, read once.
//!
//! * An effect is read before its cause, so whatever effect is here, its cause is here too. This is why most checks
//!   hold in the middle of a load.
//! * Each database is read in one snapshot. Those of a service with several shards begin together, before its rows are read, and
//!   a row counts on the shard that owns its user's bucket in them ([`owned_rows`](crate::owned_rows)). So each service is read at
//!   one moment as far as order goes, and a move between the moments of two services changes nothing: the rows are on either shard.
//! * Users of a bucket that one service's shards leave undecided are left out of every service, and of what is compared with it
//!   ([`Observed::leave_out`]). The check O1 and a note name the buckets.
//! * A target without an address leaves its part empty.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ::brokers::Brokers;
use anyhow::{Context, Result};
use saga::shards::bucket::Bucket;
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
use crate::databases::ServiceDatabases;
use crate::owned_rows::{Ownership, Undecided};
use crate::snapshots::{MOVE_TIMEOUT, Snapshots, UNDECIDED_HINT};

/// The sides that subscribers make of events, where they are part of the system.
#[derive(Debug, Default)]
pub struct DerivedData {
    pub search: SearchDocuments,
    pub notifications: Notifications,
    /// The messages that the fraud detector has parked.
    pub fraud_parked: Vec<ParkedMessage>,
}

/// The databases of each service, and whose rows they have.
#[derive(Debug, Default)]
pub struct ServedDatabases {
    /// By service, which is the relay's name of the source where it has one.
    pub clusters: BTreeMap<&'static str, Vec<Cluster>>,
    /// Who owns each bucket, of the services with several databases.
    pub ownership: BTreeMap<&'static str, Ownership>,
    /// Payments and deposits of users whose bucket is undecided on some service.
    pub left_out: HashSet<Uuid>,
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
    pub databases: ServedDatabases,
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
        for of in connections.services() {
            let clusters = observed.databases.clusters.entry(of.service).or_default();
            for one in &of.databases {
                let cluster = relay::cluster(&one.client, one.shard.as_deref()).await;
                clusters.push(cluster.context(of.service)?);
            }
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
        observed.leave_out();
        // A charge that had no row, or no call, when the rows were read may have one by now.
        let later = observed.charges_without_intent();
        if let (Some(databases), false) = (&connections.processor, later.is_empty()) {
            observed.read_charges_again(databases, &later).await?;
            observed.leave_out();
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
        if let Some(databases) = &connections.payments {
            let snapshots = Snapshots::take(databases, MOVE_TIMEOUT).await?;
            for of in &snapshots.each {
                let read = rows::payments(of.client, &of.rows, &mut self.payments).await;
                read.with_context(|| format!("{} database", of.name()))?;
            }
            self.take_ownership(snapshots, "payments").await?;
        }
        if let Some(databases) = &connections.balance {
            let snapshots = Snapshots::take(databases, MOVE_TIMEOUT).await?;
            for of in &snapshots.each {
                let read = async {
                    rows::ledger(of.client, &of.rows, &mut self.ledger).await?;
                    money::read(of.client, &of.rows, &mut self.money).await
                };
                read.await.with_context(|| format!("{} database", of.name()))?;
            }
            self.take_ownership(snapshots, "ledger").await?;
        }
        if let Some(databases) = &connections.processor {
            let snapshots = Snapshots::take(databases, MOVE_TIMEOUT).await?;
            for of in &snapshots.each {
                let read = rows::charges(of.client, &of.rows, &mut self.charges).await;
                read.with_context(|| format!("{} database", of.name()))?;
            }
            self.take_ownership(snapshots, "charges").await?;
        }
        Ok(())
    }

    async fn read_charges_again(&mut self, databases: &ServiceDatabases, ids: &[Uuid]) -> Result<()> {
        let snapshots = Snapshots::take(databases, MOVE_TIMEOUT).await?;
        for of in &snapshots.each {
            rows::charges_again(of.client, &of.rows, ids, &mut self.charges).await?;
        }
        self.take_ownership(snapshots, "charges").await
    }

    /// Keeps who owns what in these snapshots, and which payments have rows of undecided buckets in the table.
    async fn take_ownership(&mut self, snapshots: Snapshots<'_>, table: &str) -> Result<()> {
        if let Some(undecided) = snapshots.undecided() {
            let buckets: Vec<i16> = undecided.buckets().collect();
            for of in &snapshots.each {
                let ids = rows::ids_of_buckets(of.client, table, &buckets).await;
                self.databases.left_out.extend(ids.with_context(|| format!("{} database", of.name()))?);
            }
        }
        if let Some(ownership) = &snapshots.ownership {
            self.databases.ownership.insert(snapshots.service, ownership.clone());
        }
        snapshots.end().await
    }

    /// Leaves out the payments of users whose bucket is undecided on some service, whatever is known of them: the rows of that
    /// service were not read.
    pub fn leave_out(&mut self) {
        let undecided: BTreeSet<i16> = self
            .databases
            .ownership
            .values()
            .flat_map(|of| of.undecided().buckets().collect::<Vec<_>>())
            .collect();
        if undecided.is_empty() && self.databases.left_out.is_empty() {
            return;
        }
        let is_undecided = |user_id: Uuid| undecided.contains(&Bucket::of(user_id).number());
        let payments = self.payments.rows.iter().map(|(id, row)| (id, row.terms.user_id));
        let entries = self.ledger.rows.iter().flat_map(|(id, row)| [row.first, row.second].map(|e| (id, e)));
        let entries = entries.filter_map(|(id, entry)| Some((id, entry?.terms.user_id)));
        let charges = self.charges.rows.iter().map(|(id, row)| (id, row.terms.user_id));
        let of_undecided = payments.chain(entries).chain(charges).filter(|(_, user)| is_undecided(*user));
        let left_out: HashSet<Uuid> = of_undecided.map(|(id, _)| *id).collect();
        self.databases.left_out.extend(left_out);
        let left_out = &self.databases.left_out;
        let counts = |id: &Uuid| !left_out.contains(id);
        self.payments.rows.retain(|id, _| counts(id));
        self.ledger.rows.retain(|id, _| counts(id));
        self.charges.rows.retain(|id, _| counts(id));
        self.events.retain(counts);
        self.gateway.net.retain(|id, _| counts(id));
        self.derived.search.payments.retain(|id, _| counts(id));
        self.derived.notifications.rows.retain(|id, _| counts(id));
        self.accepted.retain(counts);
    }

    /// What the reader should know besides: whose users were left out.
    pub fn notes(&self) -> Vec<String> {
        let undecided = self.databases.ownership.iter().map(|(service, of)| (*service, of.undecided()));
        let undecided = undecided.filter(|(_, undecided)| !undecided.is_empty());
        let note = |(service, undecided): (&str, Undecided)| {
            let what = undecided.describe(service);
            format!("{what}. Their users were left out of all other checks. {UNDECIDED_HINT}")
        };
        undecided.map(note).collect()
    }

    /// The shards on which a payment has rows, for people; `None` where no service has several databases.
    pub fn location(&self, payment_id: Uuid) -> Option<String> {
        let payment = self.payments.rows.get(&payment_id).map(|row| row.terms.user_id);
        let entries = self.ledger.rows.get(&payment_id).and_then(|row| row.first.or(row.second));
        let charge = self.charges.rows.get(&payment_id).map(|row| row.terms.user_id);
        let users = [
            ("payments", payment),
            ("balance", entries.map(|entry| entry.terms.user_id)),
            ("processor", charge),
        ];
        let shard = |(service, user): (&str, Option<Uuid>)| {
            Some(format!("{service} on shard {}", self.databases.ownership.get(service)?.shard_of(user?)?))
        };
        let shards: Vec<String> = users.into_iter().filter_map(shard).collect();
        (!shards.is_empty()).then(|| shards.join(", "))
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
