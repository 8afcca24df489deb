//! The commands that need Kafka or RabbitMQ.

mod dead_letters;
mod failover;
mod release;
mod remove;
mod replay;
mod resnapshot;
mod run;
mod status;
mod verify;
mod wiring;

use clap::Subcommand;

use super::outcome::Outcome;

#[derive(Debug, Subcommand)]
pub enum SinkCommand {
    #[command(display_order = 1)]
    Run(run::RunConfig),
    #[command(display_order = 2, alias = "reconcile")]
    Resnapshot(resnapshot::Options),
    #[command(display_order = 3)]
    Failover(failover::Options),
    #[command(display_order = 5)]
    Status(status::Options),
    #[command(display_order = 7)]
    Verify(verify::Options),
    #[command(display_order = 8)]
    DeadLetters(dead_letters::DeadLettersConfig),
    #[command(display_order = 9)]
    Release(release::ReleaseConfig),
    #[command(display_order = 10)]
    Replay(replay::ReplayConfig),
    #[command(display_order = 11)]
    Remove(remove::Options),
}

impl SinkCommand {
    pub fn execute(self) -> Outcome {
        match self {
            Self::Run(options) => run::execute(&options),
            Self::Resnapshot(options) => resnapshot::execute(&options),
            Self::Failover(options) => failover::execute(&options),
            Self::Status(options) => status::execute(&options),
            Self::Verify(options) => verify::execute(&options),
            Self::DeadLetters(options) => dead_letters::execute(&options),
            Self::Release(options) => release::execute(&options),
            Self::Replay(options) => replay::execute(&options),
            Self::Remove(options) => remove::execute(&options),
        }
    }

    pub fn is_service(&self) -> bool {
        matches!(self, Self::Run(_))
    }
}
