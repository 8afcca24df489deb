//! The commands. Each is a file here, with its options and one function that says how it ended.
//!
//! * Commands that need Kafka or RabbitMQ are in [`with_sinks`]; `tail` and `doctor` work without the feature.
//! * To add a command: a `mod`, a variant and an arm.

pub mod arguments;
pub mod cli;
mod doctor;
pub mod outcome;
mod runtime;
#[cfg(feature = "sinks")]
mod state_topic;
mod tail;
pub mod terminal;
#[cfg(feature = "sinks")]
pub mod with_sinks;

use clap::Subcommand;

use self::outcome::Outcome;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[cfg(feature = "sinks")]
    #[command(flatten)]
    WithSinks(with_sinks::SinkCommand),
    #[command(display_order = 4)]
    Doctor(doctor::Options),
    #[command(display_order = 6)]
    Tail(tail::Options),
}

impl Command {
    pub fn execute(self) -> Outcome {
        match self {
            #[cfg(feature = "sinks")]
            Self::WithSinks(command) => command.execute(),
            Self::Doctor(options) => doctor::execute(&options),
            Self::Tail(options) => tail::execute(&options),
        }
    }

    /// Whether the command stays up and logs, instead of answering a person.
    pub fn is_service(&self) -> bool {
        match self {
            #[cfg(feature = "sinks")]
            Self::WithSinks(command) => command.is_service(),
            _ => false,
        }
    }

    /// The level of log lines unless RUST_LOG says otherwise: a command that answers a question prints only its answer.
    pub fn log_level(&self) -> tracing::Level {
        if self.is_service() { tracing::Level::INFO } else { tracing::Level::WARN }
    }
}
