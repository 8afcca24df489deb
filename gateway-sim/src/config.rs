//! Configuration of gateway-sim: flags, or environment variables of the same names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use listener::{Operators, Tls};

use crate::mix::Mix;

/// A payment gateway that misbehaves on request and keeps a ledger to check others against.
// No Debug: it would print the secret.
#[derive(Clone, Parser)]
#[command(name = "gateway-sim", version)]
pub struct Config {
    /// Address to listen on.
    #[arg(long, env, default_value = "127.0.0.1:21027")]
    pub listen_addr: SocketAddr,
    /// Only operators change the behaviour. Merchants need no token.
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    /// The ledger file. It is created if missing, and continued if present.
    #[arg(long, env, default_value = "gateway-ledger.ndjson")]
    pub ledger_path: PathBuf,
    /// Seed of every random draw.
    #[arg(long, env, default_value_t = 0)]
    pub seed: u64,
    /// Milliseconds that a charge takes, unless its client number sets a latency.
    #[arg(long, env, default_value = "0", value_parser = millis)]
    pub latency_ms: Duration,
    /// Milliseconds until the connection of a hanging call is closed without an answer.
    #[arg(long, env, default_value = "60000", value_parser = millis)]
    pub hang_ms: Duration,
    /// Script for client numbers without a directive, e.g. `jitter20-mix5`.
    #[arg(long, env, default_value = "approve", value_parser = Mix::plain)]
    pub script: Mix,
    /// Whether the same key is charged once or every time.
    #[arg(long, env, default_value = "honoured")]
    pub idempotency: Idempotency,
    /// Receiver of webhooks. They are sent for decisions that the caller did not receive, or when a directive asks for it.
    #[arg(long, env, requires = "webhook_secret")]
    pub webhook_url: Option<String>,
    /// Secret that signs webhooks: base64, with or without `whsec_` in front.
    #[arg(long, env, hide_env_values = true)]
    pub webhook_secret: Option<String>,
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Idempotency {
    Honoured,
    Ignored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

fn millis(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|error| format!("{error}: give whole milliseconds"))
}
