//! The commands. Each is a file here, with its options and one function that answers how it ended; adding one is a
//! `mod`, a variant and an arm.

mod database;
mod doctor;
#[cfg(feature = "sinks")]
pub mod reconcile;
#[cfg(feature = "sinks")]
pub mod run;
#[cfg(feature = "sinks")]
mod status;
mod tail;
mod terminal;
#[cfg(feature = "sinks")]
mod verify;

#[cfg(feature = "sinks")]
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;

use anyhow::{Context, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[cfg(feature = "sinks")]
    Run(run::RunConfig),
    #[cfg(feature = "sinks")]
    Reconcile(reconcile::Options),
    Doctor(doctor::Options),
    #[cfg(feature = "sinks")]
    Status(status::Options),
    Tail(tail::Options),
    #[cfg(feature = "sinks")]
    Verify(verify::Options),
}

impl Command {
    pub fn execute(self) -> Outcome {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(options) => run::execute(options),
            #[cfg(feature = "sinks")]
            Self::Reconcile(options) => reconcile::execute(&options),
            Self::Doctor(options) => doctor::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Status(options) => status::execute(&options),
            Self::Tail(options) => tail::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Verify(options) => verify::execute(&options),
        }
    }

    /// What is logged unless RUST_LOG says otherwise: a command that answers a question speaks by its answer.
    pub fn log_level(&self) -> &'static str {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(_) => "info",
            _ => "warn",
        }
    }
}

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done; the answer is good.
    Fine,
    /// Done; the answer is bad.
    Bad,
}

/// Why a command could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// Its arguments, its environment or its routes file are not usable; nothing was opened.
    Usage(anyhow::Error),
    Failed(anyhow::Error),
}

pub type Outcome = Result<Ending, Failure>;

impl Failure {
    pub fn usage(problem: String) -> Failure {
        Failure::Usage(anyhow::Error::msg(problem))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

/// The exit code of an outcome, as `--help` lists them.
pub fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Ok(Ending::Fine) => 0,
        Ok(Ending::Bad) => 1,
        Err(Failure::Failed(_)) => 2,
        Err(Failure::Usage(_)) => USAGE,
    }
}

/// `EX_USAGE`.
pub const USAGE: u8 = 64;

/// Runs the asynchronous part of a command to its end.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    Ok(runtime.block_on(work))
}

/// Prints an answer. Whoever closes the pipe has read enough.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// What the state topic remembers, by `source/slot`.
#[cfg(feature = "sinks")]
fn memories(brokers: &str, routes: &crate::routes::Routes) -> Result<BTreeMap<String, crate::state::Memory>> {
    let topic = routes.relay.state_topic.get_ref();
    let mut memories = BTreeMap::new();
    crate::topics::Reader::connect(brokers, routes)?.read(topic, 0, |key, value| {
        let key = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
        match value {
            Some(value) => drop(memories.insert(key, serde_json::from_slice(value).context("state record")?)),
            None => drop(memories.remove(&key)),
        }
        Ok(())
    })?;
    Ok(memories)
}
