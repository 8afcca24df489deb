//! The commands. Each is a file here, with its options and one function that answers how it ended; adding one is a
//! `mod`, a variant and an arm.

#[cfg(feature = "sinks")]
pub mod dead_letters;
#[cfg(feature = "sinks")]
pub mod reconcile;
#[cfg(feature = "sinks")]
pub mod release;
#[cfg(feature = "sinks")]
pub mod replay;
#[cfg(feature = "sinks")]
pub mod run;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[cfg(feature = "sinks")]
    Run(run::RunConfig),
    #[cfg(feature = "sinks")]
    Reconcile(reconcile::Options),
    #[cfg(feature = "sinks")]
    DeadLetters(dead_letters::DeadLettersConfig),
    #[cfg(feature = "sinks")]
    Release(release::ReleaseConfig),
    #[cfg(feature = "sinks")]
    Replay(replay::ReplayConfig),
}

impl Command {
    pub fn execute(self) -> Outcome {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(options) => run::execute(options),
            #[cfg(feature = "sinks")]
            Self::Reconcile(options) => reconcile::execute(&options),
            #[cfg(feature = "sinks")]
            Self::DeadLetters(options) => dead_letters::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Release(options) => release::execute(&options),
            #[cfg(feature = "sinks")]
            Self::Replay(options) => replay::execute(&options),
        }
    }

    /// What is logged unless RUST_LOG says otherwise: a command that answers a question speaks by its answer.
    pub fn log_level(&self) -> &'static str {
        match self {
            #[cfg(feature = "sinks")]
            Self::Run(_) => "info",
            #[cfg(feature = "sinks")]
            Self::Reconcile(_) | Self::DeadLetters(_) | Self::Release(_) | Self::Replay(_) => "warn",
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
