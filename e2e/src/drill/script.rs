//! Runs a script of a runbook as the person would who reads it.
//!
//! * It stops at the first command that fails. The addresses are those of `.stack/env`, as they are now.
//! * `coroctl`, `cdc-relay` and the like are the programs that were built beside this one, and so is `cargo stack`: nothing
//!   is compiled in the middle of a drill.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stack::environment;
use stack::layout::Layout;
use tokio::process::Command;

/// A person would have given up.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(600);
/// What `cargo stack` would run, once it was built.
const CARGO_STACK: &str = r#"cargo() { test "$1" = stack || { command cargo "$@"; return; }; shift; stack "$@"; }
"#;

/// The folder of our programs. Test programs are one below it.
///
/// # Errors
/// When this program's own file is unknown.
pub fn programs() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the file of this program is unknown")?;
    let folder = program.parent().context("a program without a folder")?;
    let is_test = folder.file_name().is_some_and(|name| name == "deps");
    Ok(if is_test { folder.parent().unwrap_or(Path::new("/")) } else { folder }.to_owned())
}

/// Runs a script with these variables besides; returns what it prints.
///
/// # Errors
/// When a command fails, with all that was printed.
pub async fn run(script: &str, variables: &[(&str, &str)]) -> Result<String> {
    let programs = programs()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-euc", &format!("{CARGO_STACK}{script}")]);
    command.envs(environment::variables(&Layout::from_env()?)?);
    command.env("PATH", format!("{}:{path}", programs.display())).envs(variables.iter().copied());
    finish(command, "the script").await
}

/// Runs `cargo stack` with these arguments; returns what it prints.
///
/// # Errors
/// When it fails.
pub async fn cargo_stack(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(programs()?.join("stack"));
    command.args(arguments);
    finish(command, &format!("cargo stack {}", arguments.join(" "))).await
}

async fn finish(mut command: Command, what: &str) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(SCRIPT_TIMEOUT, command.output());
    let output = output.await.with_context(|| format!("{what} takes longer than {SCRIPT_TIMEOUT:?}"))?;
    let output = output.with_context(|| format!("cannot run {what}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what} failed ({}):\n{printed}{errors}", output.status);
    Ok(printed)
}
