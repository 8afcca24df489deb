//! The addresses that the audit reads from.
//!
//! * It needs connection strings only, and nothing else of a stack.
//! * A target without an address is skipped, and the report says so.

use brokers::{Brokers, Properties};
use clap::Args;
use saga::contract::PAYMENT_QUEUE;
use saga::search_index::Settings;

use crate::stack::Stack;

/// Addresses by target; one that is missing or empty is skipped.
#[derive(Clone, Default, Args)]
pub struct Targets {
    /// The payments database, as a role that may read it, or its shards: NAME=URL of each, separated by spaces.
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true)]
    pub payments_database_url: Option<String>,
    /// The balance database, or its shards.
    #[arg(long, env = "BALANCE_DATABASE_URL", hide_env_values = true)]
    pub balance_database_url: Option<String>,
    /// The processor database, or its shards.
    #[arg(long, env = "PROCESSOR_DATABASE_URL", hide_env_values = true)]
    pub processor_database_url: Option<String>,
    /// The notifier database, where the notifier runs.
    #[arg(long, env = "NOTIFIER_DATABASE_URL", hide_env_values = true)]
    pub notifier_database_url: Option<String>,
    /// The fraud database, where the fraud detector runs.
    #[arg(long, env = "FRAUD_DATABASE_URL", hide_env_values = true)]
    pub fraud_database_url: Option<String>,
    /// Kafka, as HOST:PORT, several with commas between.
    #[arg(long, env = "KAFKA_BROKERS")]
    pub kafka_brokers: Option<String>,
    /// How to sign in to Kafka: a file of librdkafka's properties of connections, as the services have it.
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE", value_parser = Properties::read)]
    pub kafka_config: Option<Properties>,
    /// RabbitMQ; several nodes have commas between: amqp://user:password@one:5672,two:5672/%2f
    #[arg(long, env = "AMQP_URL", hide_env_values = true, value_parser = brokers::rabbitmq::url)]
    pub amqp_url: Option<String>,
    /// The gateway, which exports its own ledger.
    #[arg(long, env = "GATEWAY_URL")]
    pub gateway_url: Option<String>,
    /// The search index, and the alias in it.
    #[command(flatten)]
    pub search: Settings,
    /// The prefix of every topic's name.
    #[arg(long, env = "TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
    /// The work queue.
    #[arg(long, env = "QUEUE", default_value = PAYMENT_QUEUE)]
    pub queue: String,
}

impl From<&Stack> for Targets {
    fn from(stack: &Stack) -> Self {
        Self {
            payments_database_url: Some(stack.payments_database_url.clone()),
            balance_database_url: Some(stack.balance_database_url.clone()),
            processor_database_url: Some(stack.processor_database_url.clone()),
            notifier_database_url: stack.notifier_database_url.clone(),
            fraud_database_url: stack.fraud_database_url.clone(),
            kafka_brokers: Some(stack.kafka_brokers.clone()),
            kafka_config: stack.kafka_config.clone(),
            amqp_url: Some(stack.amqp_url.clone()),
            gateway_url: Some(stack.gateway_url.clone()),
            search: Settings { search_url: stack.search_url.clone(), ..Settings::default() },
            topic_prefix: String::new(),
            queue: PAYMENT_QUEUE.to_owned(),
        }
    }
}

/// A system that checks read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Payments,
    Balance,
    Processor,
    Kafka,
    Queue,
    Gateway,
    Search,
    Notifier,
    Fraud,
}

impl Target {
    pub const ALL: [Target; 9] = [
        Target::Payments,
        Target::Balance,
        Target::Processor,
        Target::Kafka,
        Target::Queue,
        Target::Gateway,
        Target::Search,
        Target::Notifier,
        Target::Fraud,
    ];

    /// The environment variable that holds its address.
    pub fn variable(self) -> &'static str {
        match self {
            Target::Payments => "PAYMENTS_DATABASE_URL",
            Target::Balance => "BALANCE_DATABASE_URL",
            Target::Processor => "PROCESSOR_DATABASE_URL",
            Target::Kafka => "KAFKA_BROKERS",
            Target::Queue => "AMQP_URL",
            Target::Gateway => "GATEWAY_URL",
            Target::Search => "SEARCH_URL",
            Target::Notifier => "NOTIFIER_DATABASE_URL",
            Target::Fraud => "FRAUD_DATABASE_URL",
        }
    }
}

impl Targets {
    /// The address of a target, if there is one.
    pub fn address(&self, target: Target) -> Option<&str> {
        let address = match target {
            Target::Payments => &self.payments_database_url,
            Target::Balance => &self.balance_database_url,
            Target::Processor => &self.processor_database_url,
            Target::Kafka => &self.kafka_brokers,
            Target::Queue => &self.amqp_url,
            Target::Gateway => &self.gateway_url,
            Target::Search => &self.search.search_url,
            Target::Notifier => &self.notifier_database_url,
            Target::Fraud => &self.fraud_database_url,
        };
        address.as_deref().filter(|text| !text.is_empty())
    }

    /// Kafka, if its address is given.
    pub fn kafka(&self) -> Option<Brokers> {
        let servers = self.address(Target::Kafka)?.to_owned();
        Brokers::new(Some(servers), self.kafka_config.clone().unwrap_or_default()).ok()
    }

    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }
}
