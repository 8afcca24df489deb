//! Configuration of balance-svc, read once before any port is bound.

use std::net::SocketAddr;

use clap::Parser;
use saga::consumer;
use saga::http::{Operators, Origins, Tls};
use saga::identity;
use saga::rate_limit;
use saga::shards;
use saga::telemetry::LogFormat;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Holds, captures and releases money for payments")]
pub struct Config {
    /// Address of the public listener (behind the edge).
    #[arg(long, env = "LISTEN_ADDR")]
    pub listen_addr: SocketAddr,
    /// Address of the admin listener: /ready, /metrics, deposits, parked messages. Never exposed at the edge.
    #[arg(long, env = "ADMIN_ADDR")]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub identity: identity::Settings,
    #[command(flatten)]
    pub rate_limit: rate_limit::Settings,
    #[command(flatten)]
    pub origins: Origins,
    #[command(flatten)]
    pub database: shards::Settings,
    /// Milliseconds from the stop signal until the service stops: the edge needs them to see that /ready fails.
    #[arg(long, env = "DRAIN_MS", default_value_t = 1500)]
    pub drain_ms: u64,
    #[command(flatten)]
    pub consumer: consumer::Settings,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
