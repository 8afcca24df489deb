//! `cargo stack k6 NAME`: a load of `compose/k6` on the running stack, and then the audit.
//!
//! No distribution packages k6. It is built from source, once for all stacks, when it is first asked for.

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::environment;
use crate::layout::Layout;
use crate::output::{Progress, Step};
use crate::workspace;

const VERSION: &str = "1.8.1";
const OLDEST_GO: &str = "1.25";
/// By which k6 says that it ran and a threshold was crossed.
const THRESHOLD_CROSSED: i32 = 99;

/// Runs the load, then the audit: what a load did must add up also when it was too slow.
///
/// # Errors
/// When there is no such load, k6 cannot be had, a threshold is crossed or an invariant is broken.
pub fn run(layout: &Layout, name: &str, arguments: &[String]) -> Result<()> {
    let script = script(layout, name)?;
    if !program(layout).is_file() {
        let progress = Progress::default();
        progress.line("  k6 is built from source, once: about 5 minutes.");
        progress.step("k6", |step| build(layout, step))?;
    }
    let load = load(layout, &script, arguments);
    let audit = workspace::e2e(layout, &["audit"]);
    match (load, audit) {
        (Ok(()), audit) => audit,
        (load, Ok(())) => load,
        (Err(load), Err(audit)) => bail!("{load:#}\n{audit:#}"),
    }
}

fn load(layout: &Layout, script: &Path, arguments: &[String]) -> Result<()> {
    let mut command = workspace::command(layout, &program(layout).display().to_string());
    // No port of its own to be controlled by: several may run side by side.
    command.args(["run", "--no-usage-report", "--address", ""]);
    if !std::io::stdout().is_terminal() {
        command.arg("--quiet");
    }
    command.args(arguments).arg(script).envs(environment::variables(layout)?);
    let status = command.status().context("k6")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(THRESHOLD_CROSSED) => bail!("a threshold of {} was crossed", script.display()),
        Some(_) | None => bail!("k6 failed ({status})"),
    }
}

/// The file of a load; what there is when there is none of that name.
fn script(layout: &Layout, name: &str) -> Result<PathBuf> {
    let folder = layout.root.join("compose/k6");
    let script = folder.join(format!("{name}.js"));
    if script.is_file() {
        return Ok(script);
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let files = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.strip_suffix(".js")?.to_owned())).collect();
    names.sort_unstable();
    bail!("there is no load {name}; there is: {}", names.join(", "))
}

/// Where this version is, or will be.
fn program(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("k6-{VERSION}"))
}

fn build(layout: &Layout, step: &Step) -> Result<String> {
    fs::create_dir_all(&layout.cache)?;
    let mut lock = fd_lock::RwLock::new(fs::File::create(layout.cache.join("k6.lock"))?);
    let _one_at_a_time = lock.write()?;
    if program(layout).is_file() {
        return Ok("already there".to_owned());
    }
    let Some(go) = go() else {
        bail!(
            "k6 is built with Go, which is not there: install Go {OLDEST_GO} or newer (what apt brings may be older)"
        );
    };
    let folder = layout.cache.join("k6.build");
    let mut command = workspace::command(layout, &go.display().to_string());
    command.args(["install", "-v", &format!("go.k6.io/k6@v{VERSION}")]);
    command.env("GOBIN", &folder).env("CGO_ENABLED", "0");
    workspace::run_quietly(layout, command, "k6", step)
        .with_context(|| format!("k6 cannot be built; it needs Go {OLDEST_GO} or newer"))?;
    fs::rename(folder.join("k6"), program(layout))?;
    fs::remove_dir(&folder)?;
    Ok(format!("{VERSION} in {}", program(layout).display()))
}

/// On the path, or where its own installer puts it.
fn go() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/local/go/bin")]);
    folders.map(|folder| folder.join("go")).find(|go| go.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_load_is_answered_with_those_there_are() {
        let layout = Layout::new(Some(env::temp_dir()), 22_000).unwrap();
        assert!(script(&layout, "smoke").unwrap().is_file());
        let unknown = script(&layout, "nothing").unwrap_err().to_string();
        assert!(unknown.contains("smoke") && !unknown.contains(".js"), "{unknown}");
    }
}
