//! Connections to the databases and to the search index, where their addresses are known.

use std::time::Duration;

use anyhow::{Context, Result};
use saga::search_index::SearchIndex;
use tokio_postgres::Client;

use super::targets::{Target, Targets};
use crate::databases;

const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Connections {
    pub payments: Option<Client>,
    pub balance: Option<Client>,
    pub processor: Option<Client>,
    /// Where they are part of the system.
    pub notifier: Option<Client>,
    pub fraud: Option<Client>,
    pub search: Option<SearchIndex>,
}

impl Connections {
    pub async fn connect(targets: &Targets) -> Result<Self> {
        Ok(Self {
            payments: connect(targets, Target::Payments).await?,
            balance: connect(targets, Target::Balance).await?,
            processor: connect(targets, Target::Processor).await?,
            notifier: connect(targets, Target::Notifier).await?,
            fraud: connect(targets, Target::Fraud).await?,
            search: search_index(targets)?,
        })
    }

    /// Each database of the saga by the relay's name of the source.
    pub fn by_source(&self) -> impl Iterator<Item = (&'static str, &Client)> {
        let connections =
            [("payments", &self.payments), ("balance", &self.balance), ("processor", &self.processor)];
        connections.into_iter().filter_map(|(name, client)| Some((name, client.as_ref()?)))
    }
}

/// The search index, if its address is known. Its client reads the authorities of the system, so it is made once.
pub fn search_index(targets: &Targets) -> Result<Option<SearchIndex>> {
    let url = targets.address(Target::Search);
    url.map(|url| SearchIndex::new(url, &targets.search.search_alias, SEARCH_TIMEOUT)).transpose()
}

async fn connect(targets: &Targets, target: Target) -> Result<Option<Client>> {
    match targets.address(target) {
        Some(url) => {
            let connected = databases::connect(url).await;
            connected.map(Some).with_context(|| format!("cannot connect to {}", target.variable()))
        }
        None => Ok(None),
    }
}
