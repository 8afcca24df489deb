//! Connections to the databases and to the search index, where their addresses are known.

use std::time::Duration;

use anyhow::{Context, Result};
use saga::search_index::SearchIndex;
use tokio_postgres::Client;

use super::targets::{Target, Targets};
use crate::databases::{self, ServiceDatabases};

const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Connections {
    pub payments: Option<ServiceDatabases>,
    pub balance: Option<ServiceDatabases>,
    pub processor: Option<ServiceDatabases>,
    /// Where they are part of the system.
    pub notifier: Option<Client>,
    pub fraud: Option<Client>,
    pub search: Option<SearchIndex>,
}

impl Connections {
    pub async fn connect(targets: &Targets) -> Result<Self> {
        Ok(Self {
            payments: of_service("payments", targets, Target::Payments).await?,
            balance: of_service("balance", targets, Target::Balance).await?,
            processor: of_service("processor", targets, Target::Processor).await?,
            notifier: connect(targets, Target::Notifier).await?,
            fraud: connect(targets, Target::Fraud).await?,
            search: search_index(targets)?,
        })
    }

    /// The databases of each service of the saga.
    pub fn services(&self) -> impl Iterator<Item = &ServiceDatabases> {
        [&self.payments, &self.balance, &self.processor].into_iter().flatten()
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

async fn of_service(
    service: &'static str,
    targets: &Targets,
    target: Target,
) -> Result<Option<ServiceDatabases>> {
    match targets.address(target) {
        Some(setting) => {
            let connected = ServiceDatabases::connect(service, setting).await;
            connected.map(Some).with_context(|| format!("cannot connect to {}", target.variable()))
        }
        None => Ok(None),
    }
}
