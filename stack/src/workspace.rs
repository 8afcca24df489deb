//! Cargo and our own binaries, run with an environment that `cargo stack` itself has not leaked into.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::environment;
use crate::layout::Layout;
use crate::logs;
use crate::output::{Progress, Step};

/// The programs that `up` starts or runs, and all that it builds. Loads, benchmarks and tests are built by whoever
/// asks for them.
pub const PROGRAMS: [&str; 7] =
    ["payments-svc", "balance-svc", "processor-svc", "cdc-relay", "gateway-sim", "migrate", "coroctl"];

/// Where cargo puts a release binary.
pub fn binary(layout: &Layout, name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    layout.root.join(target).join("release").join(name)
}

/// Whether `cargo run` sets this variable for the program it runs. A nested cargo that inherits it, or a build
/// script that reads it, would take this package for its own.
fn leaked(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CFG_"];
    const NAMES: [&str; 6] = [
        "CARGO",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_MAKEFLAGS",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A command in the workspace, as if typed into a fresh shell.
pub fn command(layout: &Layout, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&layout.root);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(leaked) {
            command.env_remove(&name);
        }
    }
    command
}

/// The one build line. `targets` narrows what is built, not how: features are those of the whole workspace.
///
/// # Errors
/// When it does not compile; the errors are in the message, all of the output in `logs build`.
pub fn build(layout: &Layout, targets: &[&str], step: &Step) -> Result<()> {
    let mut command = command(layout, "cargo");
    command.args(["build", "--release", "--workspace"]).args(targets);
    run_quietly(layout, command, "build", step)
}

/// Runs a command whose output goes to a log; the last line of it is shown while it runs.
///
/// # Errors
/// When it fails; the end of its output is in the message.
pub fn run_quietly(layout: &Layout, mut command: Command, log: &str, step: &Step) -> Result<()> {
    std::fs::create_dir_all(layout.dir.join("logs"))?;
    let path = layout.log(log);
    let mut file = std::fs::File::create(&path)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(Stdio::piped());
    let mut process = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    if let Some(output) = process.stderr.take() {
        for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
            std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes())?;
            step.now(line.trim().to_owned());
        }
    }
    if !process.wait()?.success() {
        bail!("{}\n(all of it: {})", logs::tail(&path, 40), path.display());
    }
    Ok(())
}

/// Runs `coroctl` with everything that `.stack/env` says, its output going to the terminal.
///
/// # Errors
/// When it is not built or fails.
pub fn coroctl(layout: &Layout, arguments: &[&str]) -> Result<()> {
    succeed(layout, "coroctl", arguments)
}

/// As [`coroctl`]; however it ends is for the caller to judge.
///
/// # Errors
/// When it is not built or cannot be run.
pub fn coroctl_status(layout: &Layout, arguments: &[&str]) -> Result<ExitStatus> {
    status(layout, "coroctl", arguments)
}

/// As [`coroctl`], the `e2e` program, which is built first: `up` does not.
///
/// # Errors
/// When it does not compile or fails.
pub fn e2e(layout: &Layout, arguments: &[&str]) -> Result<()> {
    Progress::default().step("build", |step| {
        build(layout, &["--bin", "e2e"], step)?;
        Ok(String::new())
    })?;
    succeed(layout, "e2e", arguments)
}

fn succeed(layout: &Layout, program: &str, arguments: &[&str]) -> Result<()> {
    let status = status(layout, program, arguments)?;
    if !status.success() {
        bail!("{program} {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

fn status(layout: &Layout, program: &str, arguments: &[&str]) -> Result<ExitStatus> {
    let program = binary(layout, program);
    if !program.is_file() {
        bail!("there is no {}: `cargo build --release --workspace` makes it", program.display());
    }
    let mut command = command(layout, &program.display().to_string());
    command.args(arguments).envs(environment::variables(layout)?);
    command.status().with_context(|| format!("cannot run {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_sets_is_removed_and_what_people_set_is_kept() {
        for name in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_BIN_NAME", "LD_LIBRARY_PATH"] {
            assert!(leaked(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "PATH"] {
            assert!(!leaked(name), "{name}");
        }
    }
}
