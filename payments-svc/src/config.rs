//! Configuration of payments-svc, read once before any port is bound.

use std::net::SocketAddr;

use clap::Parser;
use saga::consumer;
use saga::http::{Operators, Origins, Tls};
use saga::identity;
use saga::rate_limit;
use saga::search_index;
use saga::shards;
use saga::telemetry::LogFormat;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Accepts payments and reports their status")]
pub struct Config {
    /// Address of the public listener (behind the edge).
    #[arg(long, env = "LISTEN_ADDR")]
    pub listen_addr: SocketAddr,
    /// Address of the admin listener: /ready, /metrics, parked messages. Never exposed at the edge.
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
    /// Seconds after which a payment that was never charged expires.
    #[arg(long, env = "PAYMENT_TTL_SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub payment_ttl_seconds: u32,
    /// Seconds that payments may wait for their holds before new ones are refused; 0 refuses none.
    #[arg(long, env = "HOLD_DELAY_MAX_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=600))]
    pub hold_delay_max_seconds: u32,
    /// Milliseconds from the stop signal until the service stops: the edge needs them to see that /ready fails.
    #[arg(long, env = "DRAIN_MS", default_value_t = 1500)]
    pub drain_ms: u64,
    /// Searches are answered from there; without it they are answered 503.
    #[command(flatten)]
    pub search: search_index::Settings,
    #[command(flatten)]
    pub consumer: consumer::Settings,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
