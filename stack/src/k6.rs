//! `cargo stack k6 NAME`: a load of `compose/k6/profiles.json` on the running stack, and then the audit.
//!
//! `cargo stack load NAME` puts the same load on the stack without k6.
//!
//! k6 is under the AGPL, and this project installs nothing under it: the k6 on the PATH is used. Where there is none,
//! the command says so and ends with [`EXIT_UNAVAILABLE`].

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::control::Client;
use crate::environment;
use crate::layout::Layout;
use crate::workspace;

/// `EX_UNAVAILABLE` of sysexits.h: a program that this command needs is not there.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// By which k6 says that it ran and a threshold was crossed.
const THRESHOLD_CROSSED: i32 = 99;

/// Runs the load, then the audit: what a load did must add up also when it was too slow.
///
/// # Errors
/// When there is no such load, no k6 ([`Absent`]) or no stack, when a threshold is crossed or an invariant is broken.
pub fn run(layout: &Layout, name: &str, arguments: &[String]) -> Result<()> {
    check(layout, name)?;
    let program = program(&env::var_os("PATH").unwrap_or_default()).ok_or(Absent)?;
    drop(Client::of_running(layout)?);
    let load = load(layout, &program, name, arguments);
    let audit = workspace::coroctl(layout, &["audit"]);
    match (load, audit) {
        (Ok(()), audit) => audit,
        (load, Ok(())) => load,
        (Err(load), Err(audit)) => bail!("{load:#}\n{audit:#}"),
    }
}

/// There is no k6 on the PATH.
#[derive(Debug)]
pub struct Absent;

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "there is no k6 on the PATH. Coro does not install it, since it is under the AGPL. How to install it \
             (1.0 or newer) is explained by its makers in Grafana's k6 documentation: \
             https://grafana.com/docs/k6/latest/set-up/install-k6/",
        )
    }
}

impl std::error::Error for Absent {}

fn load(layout: &Layout, program: &Path, name: &str, arguments: &[String]) -> Result<()> {
    let script = layout.root.join("compose/k6/load.js");
    let mut command = workspace::command(layout, &program.display().to_string());
    // No port of its own to be controlled by: several may run side by side.
    command.args(["run", "--no-usage-report", "--address", ""]);
    if !std::io::stdout().is_terminal() {
        command.arg("--quiet");
    }
    command.args(arguments).arg(script).envs(environment::variables(layout)?).env("PROFILE", name);
    let status = command.status().context("k6")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(THRESHOLD_CROSSED) => bail!("a threshold of the load {name} was crossed"),
        Some(_) | None => bail!("k6 failed ({status})"),
    }
}

/// Fails unless there is a load of this name; says which there are.
fn check(layout: &Layout, name: &str) -> Result<()> {
    const PROFILES: &str = "k6/profiles.json";
    let profiles: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&layout.compose_file(PROFILES)?).context(PROFILES)?;
    if profiles.contains_key(name) {
        return Ok(());
    }
    let names: Vec<String> = profiles.into_keys().collect();
    bail!("there is no load {name}; there is: {}", names.join(", "))
}

/// The first k6 on this PATH that can be executed.
fn program(path: &OsStr) -> Option<PathBuf> {
    let executable = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path).map(|folder| folder.join("k6")).find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_load_is_answered_with_those_there_are() {
        let layout = Layout::new(Some(env::temp_dir()), 22_000).unwrap();
        for name in ["smoke", "load", "stress", "spike", "soak", "hot-account"] {
            check(&layout, name).unwrap();
        }
        let unknown = check(&layout, "nothing").unwrap_err().to_string();
        assert!(unknown.contains("smoke") && unknown.contains("soak"), "{unknown}");
    }
}
