//! Configuration of search-indexer, read once before any port is bound.

use std::net::SocketAddr;

use brokers::Brokers;
use clap::{Parser, Subcommand};
use saga::consumer::Subscription;
use saga::contract::{PAYMENT_TOPIC, SERVICE_TOPIC};
use saga::http::{Operators, Tls};
use saga::search_index::{self, Index};
use saga::telemetry::LogFormat;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Projects payments and the names of services into the search index")]
pub struct Config {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Address of the admin listener: /ready, /metrics.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:9640")]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub search: search_index::Settings,
    #[command(flatten)]
    pub kafka: Brokers,
    /// The beginning of the consumer groups' names: each index has a group of its own.
    #[arg(long, env = "GROUP_ID", default_value = search_index::GROUP)]
    pub group_id: String,
    /// A stable name of this instance, unique in the group: its restart then causes no rebalance.
    #[arg(long, env = "GROUP_INSTANCE_ID")]
    pub group_instance_id: Option<String>,
    /// Prefix of every topic name, so that several systems can share one Kafka.
    #[arg(long, env = "TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Make a new index from the first event on, and let searches use it once it has caught up.
    Rebuild,
}

impl Config {
    /// The name of a topic, with the prefix.
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }

    /// The subscription that fills this index.
    pub fn subscription(&self, index: &Index) -> Subscription {
        Subscription {
            brokers: self.kafka.clone(),
            group_id: index.group(&self.group_id),
            instance_id: self.group_instance_id.clone(),
            topics: [PAYMENT_TOPIC, SERVICE_TOPIC].map(|name| self.topic(name)).to_vec(),
        }
    }
}
