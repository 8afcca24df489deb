//! The commands. Each is a file here, with its options and one function that answers how it ended; adding one is a
//! `mod`, a variant and an arm.

pub mod arguments;
#[cfg(feature = "sinks")]
pub mod wiring;

#[cfg(feature = "sinks")]
pub mod dead_letters;
mod doctor;
#[cfg(feature = "sinks")]
mod failover;
#[cfg(feature = "sinks")]
pub mod release;
#[cfg(feature = "sinks")]
mod remove;
#[cfg(feature = "sinks")]
pub mod replay;
#[cfg(feature = "sinks")]
pub mod resnapshot;
#[cfg(feature = "sinks")]
pub mod run;
#[cfg(feature = "sinks")]
mod status;
mod tail;
mod terminal;
#[cfg(feature = "sinks")]
mod verify;

#[cfg(feature = "sinks")]
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::Write;

use anyhow::{Context, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[cfg(feature = "sinks")]
    Run(run::RunConfig),
    #[cfg(feature = "sinks")]
    #[command(alias = "reconcile")]
    Resnapshot(resnapshot::Options),
    #[cfg(feature = "sinks")]
    Failover(failover::Options),
    Doctor(doctor::Options),
    #[cfg(feature = "sinks")]
    Status(status::Options),
    Tail(tail::Options),
    #[cfg(feature = "sinks")]
    Verify(verify::Options),
    #[cfg(feature = "sinks")]
    DeadLetters(dead_letters::DeadLettersConfig),
    #[cfg(feature = "sinks")]
    Release(release::ReleaseConfig),
    #[cfg(feature = "sinks")]
    Replay(replay::ReplayConfig),
    #[cfg(feature = "sinks")]
    Remove(remove::Options),
}

impl Command {
    pub fn execute(self) -> Outcome {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(options) => run::execute(options),
            #[cfg(feature = "sinks")]
            Self::Resnapshot(options) => resnapshot::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Failover(options) => failover::execute(&options),
            Self::Doctor(options) => doctor::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Status(options) => status::execute(&options),
            Self::Tail(options) => tail::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Verify(options) => verify::execute(&options),
            #[cfg(feature = "sinks")]
            Self::DeadLetters(options) => dead_letters::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Release(options) => release::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Replay(options) => replay::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Remove(options) => remove::execute(&options),
        }
    }

    /// Whether it stays up and logs, rather than answers a person.
    pub fn is_service(&self) -> bool {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(_) => true,
            _ => false,
        }
    }

    /// What is logged unless RUST_LOG says otherwise: a command that answers a question speaks by its answer.
    pub fn log_level(&self) -> &'static str {
        if self.is_service() { "info" } else { "warn" }
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

/// Says something beside the answer, on standard error. That nobody listens is no reason to end.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What the state topic saves, by `source/slot`.
#[cfg(feature = "sinks")]
fn memories(
    brokers: &brokers::Brokers,
    routes: &crate::routes::Routes,
) -> Result<BTreeMap<String, crate::checkpoint::state::Checkpoint>> {
    let topic = routes.relay.state_topic.get_ref();
    let mut memories: BTreeMap<String, Option<crate::checkpoint::state::Checkpoint>> =
        routes.sources.iter().map(|source| (source.checkpoint_key(), None)).collect();
    crate::sinks::topics::Reader::new(brokers, routes).read(topic, 0, |_, key, value| {
        // Other records are of sources and of tables that nobody asks for here.
        let known = std::str::from_utf8(key.unwrap_or_default()).ok().and_then(|key| memories.get_mut(key));
        if let Some(memory) = known {
            let record = value.map(serde_json::from_slice).transpose().context("state record")?;
            *memory = crate::checkpoint::state::load(memory.take(), record);
        }
        Ok(())
    })?;
    Ok(memories.into_iter().filter_map(|(name, memory)| Some((name, memory?))).collect())
}

/// Of the state topic: by `source/slot`, what it keeps of publications; and, with it, tables that are still to be read
/// again because the publication left something out of them.
#[cfg(feature = "sinks")]
type PublicationRecords =
    (BTreeMap<String, crate::source::coverage::record::Record>, BTreeSet<(String, String)>);

#[cfg(feature = "sinks")]
fn records(brokers: &brokers::Brokers, routes: &crate::routes::Routes) -> Result<PublicationRecords> {
    use crate::source::backfill::snapshot::{TableProgress, record_table};
    use crate::source::coverage::record::record_key;
    let names: Vec<String> = routes.sources.iter().map(crate::routes::Source::checkpoint_key).collect();
    let (mut records, mut unread) = (BTreeMap::new(), BTreeSet::new());
    let topic = routes.relay.state_topic.get_ref();
    crate::sinks::topics::Reader::new(brokers, routes).read(topic, 0, |_, key, value| {
        let key = key.unwrap_or_default();
        for name in &names {
            if key == record_key(name).as_bytes() {
                match value.map(serde_json::from_slice).transpose().context("publication record")? {
                    Some(record) => records.insert(name.clone(), record),
                    None => records.remove(name),
                };
            } else if let Some(table) = record_table(name, key) {
                let position: Option<TableProgress> =
                    value.map(serde_json::from_slice).transpose().context("snapshot record")?;
                let table = (name.clone(), table.to_owned());
                if position.is_some_and(|position| position.heals && !position.done) {
                    unread.insert(table);
                } else {
                    unread.remove(&table);
                }
            }
        }
        Ok(())
    })?;
    Ok((records, unread))
}

#[cfg(all(test, feature = "sinks"))]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::commands::arguments::Cli;

    #[test]
    fn reconcile_is_a_hidden_alias_of_resnapshot() {
        for name in ["resnapshot", "reconcile"] {
            let cli = Cli::try_parse_from(["cdc-relay", name, "--kafka-brokers", "broker:9092", "--yes"]);
            let command = cli.expect("arguments").command;
            assert!(matches!(&command, Command::Resnapshot(options) if options.yes), "{name}: {command:?}");
        }
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("resnapshot") && !help.contains("reconcile"), "{help}");
        assert!(Cli::try_parse_from(["cdc-relay", "release", "--all", "--pass-over"]).is_err());
    }
}
