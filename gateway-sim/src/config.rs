//! Configuration of gateway-sim: flags, or environment variables of the same names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{Error, ErrorKind};
use clap::{ArgMatches, Args, Command, FromArgMatches, Parser, ValueEnum};
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
    #[command(flatten)]
    pub webhooks: Webhooks,
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
}

/// The flags behind [`Webhooks`].
#[derive(Args)]
struct WebhookFlags {
    /// Receiver of webhooks. They are sent for decisions that the caller did not receive, or when a directive asks for it.
    #[arg(long, env)]
    webhook_url: Option<String>,
    /// Secret that signs webhooks: base64, with or without `whsec_` in front.
    #[arg(long, env, hide_env_values = true)]
    webhook_secret: Option<String>,
}

/// Where webhooks go, if anywhere, and what signs them. clap's `requires` does not count a secret that a file holds.
#[derive(Clone)]
pub struct Webhooks {
    /// URL and secret.
    pub target: Option<(String, String)>,
}

impl FromArgMatches for Webhooks {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let WebhookFlags { webhook_url, webhook_secret } = WebhookFlags::from_arg_matches(matches)?;
        let Some(url) = webhook_url else { return Ok(Self { target: None }) };
        let secret = webhook_secret.ok_or_else(|| {
            let why = "WEBHOOK_URL needs WEBHOOK_SECRET, which signs the webhooks; set it, or WEBHOOK_SECRET_FILE\n";
            Error::raw(ErrorKind::MissingRequiredArgument, why)
        })?;
        Ok(Self { target: Some((url, secret)) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Webhooks {
    fn augment_args(command: Command) -> Command {
        WebhookFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        WebhookFlags::augment_args_for_update(command)
    }
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
