//! Configuration of search-indexer, read once before any port is bound.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};
use saga::consumer::{self, Subscription};
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
    pub consumer: consumer::Settings,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Make a new index from the first event on, and let searches use it once it has caught up.
    Rebuild,
}

impl Config {
    /// The subscription that fills this index.
    pub fn subscription(&self, index: &Index) -> Subscription {
        let subscription = self.consumer.subscription(search_index::GROUP, &[PAYMENT_TOPIC, SERVICE_TOPIC]);
        Subscription { group_id: index.group(&subscription.group_id), ..subscription }
    }
}
