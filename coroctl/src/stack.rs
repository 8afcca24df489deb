//! The addresses of one running stack, from the variables of `.stack/env`.

use anyhow::{Context, Result};
use brokers::{Brokers, Properties};

/// Addresses of one running stack.
#[derive(Clone, Debug)]
pub struct Stack {
    pub edge_url: String,
    /// The edge's own metrics.
    pub edge_admin_url: String,
    pub payments_url: String,
    pub payments_admin_url: String,
    /// The metrics of payments-svc-2: the two share the partitions of what they subscribe to.
    pub payments_2_admin_url: String,
    pub balance_url: String,
    pub balance_admin_url: String,
    pub processor_admin_url: String,
    /// Of a stack that has the notifier.
    pub notifier_admin_url: Option<String>,
    pub gateway_url: String,
    pub prometheus_url: String,
    /// Of a stack that has search.
    pub search_url: Option<String>,
    pub kafka_brokers: String,
    /// How to sign in there, where one has to.
    pub kafka_config: Option<Properties>,
    /// The file with which the administrator of Kafka signs in.
    pub kafka_admin_config: String,
    pub amqp_url: String,
    pub payments_database_url: String,
    pub balance_database_url: String,
    pub processor_database_url: String,
    /// Of a stack that has the notifier.
    pub notifier_database_url: Option<String>,
    /// Of a stack that has the fraud detector.
    pub fraud_database_url: Option<String>,
    pub postgres_admin_url: String,
    /// The token by which operators sign in to admin listeners.
    pub admin_token: String,
    pub demo_user_id: String,
    pub demo_service_id: String,
    /// The stack's own folder: its state names the processes.
    pub dir: String,
}

impl Stack {
    /// Reads the environment, which `cargo stack` sets for its commands and tests.
    pub fn from_env() -> Result<Self> {
        Self::read(secret_files::value)
    }

    /// Reads variables that may have changed since this process was started.
    ///
    /// # Errors
    /// When one is missing.
    pub fn read(variable: impl Fn(&str) -> Result<Option<String>>) -> Result<Self> {
        let get = |name: &str| {
            variable(name)?.with_context(|| {
                format!("{name} is not set: source .stack/env first, or run this through `cargo stack`")
            })
        };
        Ok(Self {
            edge_url: get("EDGE_URL")?,
            edge_admin_url: get("EDGE_ADMIN_URL")?,
            payments_url: get("PAYMENTS_URL")?,
            payments_admin_url: get("PAYMENTS_ADMIN_URL")?,
            payments_2_admin_url: get("PAYMENTS_2_ADMIN_URL")?,
            balance_url: get("BALANCE_URL")?,
            balance_admin_url: get("BALANCE_ADMIN_URL")?,
            processor_admin_url: get("PROCESSOR_ADMIN_URL")?,
            notifier_admin_url: variable("NOTIFIER_ADMIN_URL")?,
            gateway_url: get("GATEWAY_URL")?,
            prometheus_url: get("PROMETHEUS_URL")?,
            search_url: variable("SEARCH_URL")?,
            kafka_brokers: get("KAFKA_BROKERS")?,
            kafka_config: properties(variable("KAFKA_CONFIG")?)?,
            kafka_admin_config: get("KAFKA_ADMIN_CONFIG")?,
            amqp_url: get("AMQP_URL")?,
            payments_database_url: get("PAYMENTS_DATABASE_URL")?,
            balance_database_url: get("BALANCE_DATABASE_URL")?,
            processor_database_url: get("PROCESSOR_DATABASE_URL")?,
            notifier_database_url: variable("NOTIFIER_DATABASE_URL")?,
            fraud_database_url: variable("FRAUD_DATABASE_URL")?,
            postgres_admin_url: get("POSTGRES_ADMIN_URL")?,
            admin_token: get("ADMIN_TOKEN")?,
            demo_user_id: get("DEMO_USER_ID")?,
            demo_service_id: get("DEMO_SERVICE_ID")?,
            dir: get("STACK_DIR")?,
        })
    }

    /// Kafka, for whoever reads it.
    pub fn kafka(&self) -> Result<Brokers> {
        Brokers::new(Some(self.kafka_brokers.clone()), self.kafka_config.clone().unwrap_or_default())
    }

    /// The same stack, through the edge as clients reach it.
    #[must_use]
    pub fn through_edge(&self) -> Self {
        let edge = || self.edge_url.clone();
        Self { payments_url: edge(), balance_url: edge(), ..self.clone() }
    }
}

/// The file in KAFKA_CONFIG, if the variable is set.
fn properties(file: Option<String>) -> Result<Option<Properties>> {
    file.filter(|file| !file.is_empty())
        .map(|file| Properties::read(&file).map_err(anyhow::Error::msg))
        .transpose()
}
