//! `cargo stack exec NAME …`: a command of a service's program, with the environment that the service has in this stack.
//!
//! * The process beside it goes on. In containers `docker compose exec` is the same.
//! * Commands of a service are `recover` and those of the relay: `doctor`, `resnapshot`, `replay` …

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layout::Layout;
use crate::services::Instance;

/// Runs the program of this instance with these arguments.
///
/// # Errors
/// When there is no such service, or the command fails.
pub fn run(layout: &Layout, name: &str, arguments: &[String]) -> Result<()> {
    let instance = Instance::named(name)
        .with_context(|| format!("{name} is no service of ours: `cargo stack status` lists them"))?;
    let spec = instance.spec(layout)?;
    let program = spec.argv.first().context("a service without a program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&spec.env).env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
    let status = command.status().with_context(|| format!("cannot run {program}; is it built?"))?;
    ensure!(status.success(), "{name} {}: {status}", arguments.join(" "));
    Ok(())
}
