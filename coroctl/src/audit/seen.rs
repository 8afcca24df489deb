//! Everything the checks look at, read once. The order of reading is what lets most checks hold in the middle
//! of a load: an effect is read before its cause, so whatever effect is seen, its cause is seen too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use tokio_postgres::{Client, IsolationLevel, Transaction};
use uuid::Uuid;

use super::Options;
use super::gateway::{self, Book};
use super::hear::{self, Heard, Lag};
use super::money::{self, Money};
use super::places::{Part, Places};
use super::relay::{self, Cluster, Memory};
use super::rows::{self, Charges, Ledger, Payments};
use super::told::{Foreign, Place, Told};
use crate::databases;

/// All sides of the saga at about one moment. Parts that could not be looked at are empty.
#[derive(Debug, Default)]
pub struct Seen {
    pub money: Money,
    pub payments: Payments,
    pub ledger: Ledger,
    pub charges: Charges,
    pub told: Told,
    pub letters: Vec<Foreign>,
    pub memories: Vec<Memory>,
    /// By the relay's name of the source.
    pub clusters: BTreeMap<&'static str, Cluster>,
    pub gateway: Book,
    pub lags: Vec<Lag>,
    /// In the work queue.
    pub waiting: u32,
    /// Messages set aside: topic/partition/offset, without the prefix of topics.
    pub parked_ids: BTreeSet<String>,
    pub explained: BTreeSet<String>,
    pub accepted: Vec<Uuid>,
}

/// Connections to the databases whose strings are known.
pub struct Links {
    pub payments: Option<Client>,
    pub balance: Option<Client>,
    pub processor: Option<Client>,
}

impl Links {
    pub async fn connect(places: &Places) -> Result<Self> {
        Ok(Self {
            payments: link(places, Part::Payments).await?,
            balance: link(places, Part::Balance).await?,
            processor: link(places, Part::Processor).await?,
        })
    }

    /// Each database by the relay's name of the source.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Client)> {
        let links =
            [("payments", &self.payments), ("balance", &self.balance), ("processor", &self.processor)];
        links.into_iter().filter_map(|(name, client)| Some((name, client.as_ref()?)))
    }
}

async fn link(places: &Places, part: Part) -> Result<Option<Client>> {
    match places.of(part) {
        Some(url) => databases::connect(url).await.map(Some).context(part.variable()),
        None => Ok(None),
    }
}

/// One state of a database, however long it is read.
async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    transaction.read_only(true).start().await.context("snapshot")
}

/// Ids of records without the prefix of topics.
fn unprefixed<'a>(ids: impl IntoIterator<Item = &'a String>, prefix: &str) -> BTreeSet<String> {
    ids.into_iter().map(|id| id.strip_prefix(prefix).unwrap_or(id).to_owned()).collect()
}

impl Seen {
    /// Looks at everything whose place is known.
    pub async fn look(places: &Places, links: &mut Links, options: &Options) -> Result<Self> {
        let mut seen = Self {
            explained: options.explained.clone(),
            accepted: options.accepted.clone(),
            ..Self::default()
        };
        for (name, client) in links.all() {
            seen.clusters.insert(name, relay::cluster(client).await.context(name)?);
        }
        if let Some(brokers) = places.of(Part::Kafka) {
            seen.hear(brokers, places).await?;
        }
        if let Some(url) = places.of(Part::Queue) {
            seen.waiting = hear::waiting(url, &places.queue).await?;
        }
        seen.read(links).await?;
        if let Some(url) = places.of(Part::Gateway) {
            seen.gateway = gateway::read(url).await?;
        }
        // A charge that was not there, or not called, when the rows were read may be by now.
        let later = gateway::unadmitted(&seen);
        if let (Some(client), false) = (&links.processor, later.is_empty()) {
            rows::charges_again(client, &later, &mut seen.charges).await?;
        }
        seen.note_parked(&places.topic_prefix);
        Ok(seen)
    }

    async fn hear(&mut self, brokers: &str, places: &Places) -> Result<()> {
        let (brokers, places) = (brokers.to_owned(), places.clone());
        let explained = unprefixed(&self.explained, &places.topic_prefix);
        let listen = move || Ok((hear::lags(&brokers, &places)?, hear::kafka(&brokers, &places, explained)?));
        let heard: Result<(Vec<Lag>, Heard)> = tokio::task::spawn_blocking(listen).await?;
        let (lags, Heard { told, letters, memories }) = heard.context("Kafka")?;
        (self.lags, self.told, self.letters, self.memories) = (lags, told, letters, memories);
        Ok(())
    }

    /// Payments before the ledger before charges: a payment's end before the money's move before its reason.
    async fn read(&mut self, links: &mut Links) -> Result<()> {
        if let Some(client) = &mut links.payments {
            let transaction = snapshot(client).await?;
            self.payments = rows::payments(&transaction).await.context("payments database")?;
        }
        if let Some(client) = &mut links.balance {
            let transaction = snapshot(client).await?;
            self.ledger = rows::ledger(&transaction).await.context("balance database")?;
            self.money = money::look(&transaction).await.context("balance database")?;
        }
        if let Some(client) = &mut links.processor {
            let transaction = snapshot(client).await?;
            self.charges = rows::charges(&transaction).await.context("processor database")?;
        }
        Ok(())
    }

    /// Gathers the ids of what was set aside.
    pub fn note_parked(&mut self, topic_prefix: &str) {
        let parked = [&self.payments.parked, &self.ledger.parked, &self.charges.parked];
        let ids = parked.into_iter().flatten().map(|message| &message.parked_id);
        self.parked_ids = unprefixed(ids, topic_prefix);
    }

    /// Whether a service has set this record aside.
    pub fn is_parked(&self, topic: &str, (partition, offset): Place) -> bool {
        !self.parked_ids.is_empty() && self.parked_ids.contains(&format!("{topic}/{partition}/{offset}"))
    }

    /// Why a source's slot does not fit what the relay remembers.
    pub fn slot_problem(&self, memory: &Memory) -> Option<String> {
        memory.problem(self.clusters.get(memory.source.as_str())?)
    }
}
