//! Configuration of the fraud detector, read once before any port is bound.

use std::net::SocketAddr;

use clap::Parser;
use saga::consumer;
use saga::http::{Operators, Tls};
use saga::telemetry::LogFormat;

use crate::saga::Rules;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Raises alerts about users who pay unusually often or unusually much")]
pub struct Config {
    /// Address of the admin listener: /ready, /metrics.
    #[arg(long, env)]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    /// The fraud database, as the role fraud.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: String,
    /// Maximum number of database connections.
    #[arg(long, env, default_value_t = 2)]
    pub pool_size: usize,
    #[command(flatten)]
    pub consumer: consumer::Settings,
    #[command(flatten)]
    pub rules: Rules,
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
