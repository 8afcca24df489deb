//! Configuration: flags, or the environment variables of the same names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use listener::Operators;

use crate::mix::Mix;

/// A payment gateway that misbehaves on request and keeps a ledger to check others against.
#[derive(Clone, Debug, Parser)]
#[command(name = "gateway-sim", version)]
pub struct Config {
    /// Address to listen on.
    #[arg(long, env, default_value = "127.0.0.1:21027")]
    pub listen_addr: SocketAddr,
    /// Behaviour is changed by operators only; merchants need no token.
    #[command(flatten)]
    pub operators: Operators,
    /// The ledger file; created if missing, continued if there.
    #[arg(long, env, default_value = "gateway-ledger.ndjson")]
    pub ledger_path: PathBuf,
    /// Everything drawn by chance follows from it.
    #[arg(long, env, default_value_t = 0)]
    pub seed: u64,
    /// Milliseconds every charge takes, unless its number says otherwise.
    #[arg(long, env, default_value = "0", value_parser = millis)]
    pub latency_ms: Duration,
    /// Milliseconds after which a call that hangs is closed without an answer.
    #[arg(long, env, default_value = "60000", value_parser = millis)]
    pub hang_ms: Duration,
    /// Script for client numbers without a word of their own, e.g. `jitter20-mix5`.
    #[arg(long, env, default_value = "approve", value_parser = Mix::plain)]
    pub script: Mix,
    /// Whether the same key is charged once, or every time.
    #[arg(long, env, default_value = "honoured")]
    pub idempotency: Idempotency,
    /// Where decisions are told that a caller did not hear of, or whose number asks for it.
    #[arg(long, env, requires = "webhook_secret")]
    pub webhook_url: Option<String>,
    /// What they are signed with: base64, `whsec_` in front if you like.
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
    text.parse().map(Duration::from_millis).map_err(|error| format!("{error}: whole milliseconds"))
}
