//! The operator's command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use uuid::Uuid;

use crate::audit::command::{self as audit, Audit};
use crate::find::{self, Find};
use crate::parked::{self, Parked};
use crate::replay::{self, Replay};
use crate::resolve::{self, Resolve};
use crate::shard::{self, Shard};
use crate::stack::Stack;
use crate::stuck::{self, Stuck};
use crate::{explain, first_payment};

/// Looks at a running Coro, and mends it by hand.
///
/// Addresses come from the environment (`. .stack/env` sets them all) or from options. `find`, `stuck`, `parked list`,
/// `parked show`, `resolve list`, `explain`, `audit` and `shard list`, `plan`, `verify` and `moves` read only. `parked retry`,
/// `parked dismiss` and `resolve` ask a service to act, with the token of its admin listener and the name of an operator;
/// what an act changes, and by whom and why, is kept beside what it changed. `replay` runs the relay, which emits an event once more;
/// it changes no row and is no act.
///
/// Exit codes: 0 done, 1 refused or failed, 2 the command line is wrong. `audit` has its own.
#[derive(Parser)]
#[command(name = "coroctl", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Find payments by user, id, status, age, client number or service.
    ///
    /// The newest come first, a page at a time. Without --user and --payment the last 24 hours are searched; a search reads
    /// every payment of the time that it covers, some hundred thousand a second.
    Find(Find),
    /// Print the payments that have not ended in time: the step that each waits for, since when, and the last error.
    ///
    /// The oldest come first. It reads the three databases in sets, every payment of the time that --within names.
    Stuck(Stuck),
    /// Look at the messages that services have set aside, and retry or dismiss them.
    #[command(subcommand)]
    Parked(Parked),
    /// End a charge by what the gateway says elsewhere, or a hold without a payment: one proposes, another confirms.
    #[command(subcommand)]
    Resolve(Resolve),
    /// Have the relay emit the last committed row of a payment once more, which is safe at any time.
    ///
    /// For a payment that stands still because its last event was lost. It runs `cdc-relay replay`.
    Replay(Replay),
    /// Print the whole life of one payment, and the step that it waits for.
    ///
    /// Its rows in the three databases, its events with their offsets, the gateway's answer, and milliseconds per hop.
    Explain {
        /// The payment_id of the 201.
        payment_id: Uuid,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Check every invariant over everything there is.
    ///
    /// Exit codes: 0 every check that was made holds, 1 an invariant is violated, 2 the audit could not be made.
    Audit(Box<Audit>),
    /// Look at the shards of a service, and move buckets between them.
    #[command(subcommand)]
    Shard(Shard),
    /// Deposit, pay, wait for the end, and print the payment's life.
    ///
    /// It writes: a deposit for DEMO_USER_ID, and one payment.
    FirstPayment,
    /// Print the completions of a shell: `coroctl completions bash > /etc/bash_completion.d/coroctl`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page of this command, or write those of all its commands into a folder.
    Man {
        /// The folder; it has to exist.
        folder: Option<PathBuf>,
    },
}

/// Carries out the command.
///
/// # Errors
/// As each command says.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Action::Find(find) => find::run(&find).await?,
        Action::Stuck(stuck) => stuck::run(&stuck).await?,
        Action::Parked(command) => parked::run(&command).await?,
        Action::Resolve(command) => resolve::run(&command).await?,
        Action::Replay(replay) => replay::run(&replay).await?,
        Action::Shard(command) => shard::run(&command).await?,
        Action::FirstPayment => saga::say!("{}", first_payment::run(&Stack::from_env()?).await?),
        Action::Explain { payment_id, json } => {
            let life = explain::life(&Stack::from_env()?, payment_id).await?;
            saga::say!("{}", if json { serde_json::to_string_pretty(&life)? } else { life.to_string() });
        }
        // It needs no whole stack, and has exit codes of its own.
        Action::Audit(options) => return Ok(ExitCode::from(audit::run(&options).await)),
        Action::Completions { shell } => {
            // Into memory first: it panics where the reader of a pipe has gone.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coroctl", &mut script);
            io::stdout().write_all(&script).context("cannot print the completions")?;
        }
        Action::Man { folder } => manual(folder.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn manual(folder: Option<&Path>) -> Result<()> {
    match folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder)
            .with_context(|| format!("cannot write the manual pages into {}", folder.display())),
        None => {
            clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()).context("cannot print the page")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_shell_gets_a_script_with_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coroctl", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in ["first-payment", "distribute", "--dry-run"] {
                // Fish has the names of options without their dashes.
                assert!(script.contains(name.trim_start_matches('-')), "{shell} does not know {name}");
            }
        }
    }

    /// The commands below this one, each by its path.
    fn commands(command: &clap::Command, path: &str) -> Vec<(String, String)> {
        let shown = command.get_subcommands().filter(|command| command.get_name() != "help");
        let below = shown.flat_map(|command| {
            let path = format!("{path}-{}", command.get_name());
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            [vec![(path.clone(), about)], commands(command, &path)].concat()
        });
        below.collect()
    }

    #[test]
    fn every_command_has_a_manual_page_that_says_what_it_does() {
        let folder = std::env::temp_dir().join(format!("coroctl-man-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        manual(Some(&folder)).unwrap();
        let all = commands(&Cli::command(), "coroctl");
        assert!(all.iter().any(|(path, _)| path == "coroctl-shard-add"), "{all:?}");
        for (path, about) in all {
            let page = std::fs::read_to_string(folder.join(format!("{path}.1")));
            let page = page.unwrap_or_else(|error| panic!("{path}: {error}"));
            let begins = about.split([':', ',', '-', '`', '\'']).next().unwrap();
            assert!(!about.is_empty() && page.contains(begins), "{about}: {page}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
