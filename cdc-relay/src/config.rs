//! The command line and the environment, read before anything is opened.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Tells committed Postgres row changes to Kafka and RabbitMQ: none lost, none reordered, none invented.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Streams until it is told to stop.
    #[cfg(feature = "sinks")]
    Run(RunConfig),
}

#[derive(Debug, Clone, Args)]
pub struct RunConfig {
    /// The routes file.
    #[arg(long = "routes", env = "RELAY_ROUTES", default_value = "cdc-relay/relay.toml")]
    pub routes: PathBuf,
    /// Streams only this source.
    #[arg(long)]
    pub source: Option<String>,
    /// Where /health, /ready and /metrics are served.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:9600")]
    pub admin_addr: SocketAddr,
    /// Kafka's bootstrap servers.
    #[arg(long, env = "KAFKA_BROKERS")]
    pub kafka_brokers: String,
    /// RabbitMQ; needed if a route leads to a queue.
    #[arg(long, env = "AMQP_URL")]
    pub amqp_url: Option<String>,
}
