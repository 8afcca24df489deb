//! The command line and the environment, read before anything is opened.
//!
//! Every command's own options lie beside it in `commands`; here is what they share, so that a flag means the same
//! everywhere.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::commands::{Command, Failure};
use crate::routes::Routes;

/// Emits committed Postgres row changes to Kafka and RabbitMQ: none lost, none reordered, none invented.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look. They go to standard error.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true, hide_possible_values = true)]
    #[arg(value_name = "text|json")]
    pub log_format: LogFormat,
}

const AFTER_HELP: &str = "\
Start here:
  cdc-relay tail postgres://user@host/db      see the changes of a database; needs nothing else
  cdc-relay doctor postgres://user@host/db    is the server set up so that nothing is lost?
  cdc-relay run --routes relay.toml           emit the changes

Exit codes:
  0   done; and where a question was asked, the answer is good
  1   the answer is bad: doctor found a risk of loss, status found a source that
      stands still, verify found a gap
  2   it could not be done, or not be looked at
  64  the command line, the environment or the routes file is not usable; nothing was opened

RUST_LOG chooses what is logged (default: info for run, warn for other commands).";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// The routes file, and the part of it that is meant.
#[derive(Debug, Clone, Args)]
pub struct RoutesArgs {
    /// The routes file: what is emitted, and where.
    #[arg(long = "routes", env = "RELAY_ROUTES", default_value = "relay.toml", value_name = "FILE")]
    pub file: PathBuf,
    /// Only this source of the routes file.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
}

impl RoutesArgs {
    /// Reads the file, and leaves the sources that are meant.
    pub fn read(&self) -> Result<Routes, Failure> {
        let mut routes = Routes::read(&self.file).map_err(Failure::Usage)?;
        if let Some(name) = &self.source {
            if routes.source(name).is_none() {
                return Err(Failure::usage(format!("--source: there is no source `{name}`")));
            }
            routes.sources.retain(|source| source.name.get_ref() == name);
        }
        Ok(routes)
    }
}

impl RoutesArgs {
    /// As `read`, for a command that can do without the file: `instead` says how, where there is none.
    pub fn read_or(&self, instead: &'static str) -> Result<Routes, Failure> {
        self.read().map_err(|failure| match failure {
            Failure::Usage(error) if !self.file.exists() => Failure::Usage(error.context(instead)),
            failure => failure,
        })
    }
}

#[derive(Debug, Clone, Args)]
pub struct AmqpArgs {
    /// RabbitMQ; needed if a route leads to a queue.
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: Option<String>,
}

/// For whoever reads the answer with a program.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArgs {
    /// Print JSON; its field names are kept from release to release.
    #[arg(long)]
    pub json: bool,
}
