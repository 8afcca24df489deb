//! The arguments that commands share, so that a flag means the same everywhere.

use std::path::PathBuf;

use clap::Args;

use crate::commands::outcome::Failure;
use crate::routes::{Routes, Source};

/// The routes file, and the chosen part of it.
#[derive(Debug, Clone, Args)]
pub struct RoutesArgs {
    /// The routes file: it says which rows are emitted, and where to.
    #[arg(long = "routes", env = "RELAY_ROUTES", default_value = "relay.toml", value_name = "FILE")]
    pub file: PathBuf,
    /// Only this source of the routes file.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
}

impl RoutesArgs {
    /// Reads the file, and keeps the chosen sources.
    pub fn read(&self) -> Result<Routes, Failure> {
        self.chosen(Routes::read(&self.file).map_err(Failure::Usage)?)
    }

    /// Keeps the chosen sources.
    pub fn chosen(&self, mut routes: Routes) -> Result<Routes, Failure> {
        if let Some(name) = &self.source {
            if routes.source(name).is_none() {
                return Err(Failure::usage(format!("--source: the routes file has no source `{name}`")));
            }
            routes.sources.retain(|source| source.name.get_ref() == name);
        }
        Ok(routes)
    }

    /// As `read`, for a command that works without the file too: `instead` says how.
    pub fn read_or(&self, instead: &'static str) -> Result<Routes, Failure> {
        self.read().map_err(|failure| match failure {
            Failure::Usage(error) if !self.file.exists() => Failure::Usage(error.context(instead)),
            failure => failure,
        })
    }
}

/// The one source of a command that works on one.
pub fn only_source(routes: &Routes) -> Result<&Source, Failure> {
    match routes.sources.as_slice() {
        [source] => Ok(source),
        sources => {
            let names: Vec<&str> = sources.iter().map(|source| source.name.get_ref().as_str()).collect();
            let names = names.join(", ");
            Err(Failure::usage(format!(
                "the routes file has several sources; choose one by --source: {names}"
            )))
        }
    }
}

#[cfg(feature = "sinks")]
#[derive(Clone, Args)]
pub struct AmqpArgs {
    /// RabbitMQ; needed if a route leads to a queue. Several of its nodes have commas between:
    /// amqp://user:password@one:5672,two:5672/%2f
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true, value_parser = brokers::rabbitmq::url)]
    pub amqp_url: Option<String>,
}

#[cfg(feature = "sinks")]
impl std::fmt::Debug for AmqpArgs {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpArgs").finish_non_exhaustive()
    }
}

/// The format of the answer.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArgs {
    /// Print JSON; its field names are kept from release to release.
    #[arg(long)]
    pub json: bool,
}
