//! The command line of `cdc-relay`.

use clap::{Parser, ValueEnum};

use crate::commands::Command;

/// Emits committed Postgres row changes to Kafka and RabbitMQ: none lost, none reordered, none invented.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// The format of log lines. They go to standard error.
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
  0   the command is done; where it was a question, the answer is good
  1   the answer is bad: doctor found a risk of loss, status found a source that
      does not stream, verify found a gap
  2   the command failed
  64  the command line, the environment or the routes file is not usable; nothing was opened

RUST_LOG chooses what is logged (default: info for run, warn for other commands).";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[cfg(all(test, feature = "sinks"))]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::commands::with_sinks::SinkCommand;

    #[test]
    fn reconcile_is_a_hidden_alias_of_resnapshot() {
        for name in ["resnapshot", "reconcile"] {
            let cli = Cli::try_parse_from(["cdc-relay", name, "--kafka-brokers", "broker:9092", "--yes"]);
            let command = cli.expect("arguments").command;
            assert!(
                matches!(&command, Command::WithSinks(SinkCommand::Resnapshot(options)) if options.yes),
                "{name}: {command:?}"
            );
        }
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("resnapshot") && !help.contains("reconcile"), "{help}");
        assert!(Cli::try_parse_from(["cdc-relay", "release", "--all", "--pass-over"]).is_err());
    }
}
