//! The last step before a child runs: a session of its own, its log, its user; then this program becomes it.
//!
//! Done by a hidden subcommand of the same binary instead of a hook between fork and exec, which would need
//! unsafe code. The pid and start time stay those of the launcher.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::spec::Spec;

/// This program, also when its file has been replaced by a newer build.
pub const SELF: &str = "/proc/self/exe";

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// The file that gets its output; the caller's streams are kept when it is not given.
    #[arg(long)]
    log: Option<PathBuf>,
    #[arg(long)]
    cwd: PathBuf,
    #[arg(long)]
    uid: Option<u32>,
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Becomes the child. Returns only on failure.
pub fn run(args: &LaunchArgs) -> Result<()> {
    let [program, arguments @ ..] = args.argv.as_slice() else { bail!("no command") };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&args.cwd).stdin(Stdio::null());
    if let Some(log) = &args.log {
        let _session = rustix::process::setsid().context("cannot make a session")?;
        // Append: what the supervisor cuts off stays off.
        let file = OpenOptions::new().append(true).create(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    if let Some(uid) = args.uid {
        rustix::thread::set_no_new_privs(true)?;
        // As root this also drops the supplementary groups.
        command.gid(uid).uid(uid);
    }
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}

/// The command by which the supervisor starts a child.
pub fn command(spec: &Spec, member: &str) -> Command {
    let mut command = launcher(&spec.cwd, spec.uid);
    command.arg("--log").arg(&spec.log).arg("--").args(&spec.argv);
    command.env_clear().envs(spec.environment(member));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// A short-lived tool run as the servers' user, with a clean environment; its output is returned.
///
/// # Errors
/// When it cannot be started or fails; its last output is in the message.
pub fn tool(cwd: &Path, uid: Option<u32>, argv: &[String], env: &BTreeMap<String, String>) -> Result<String> {
    let [program, arguments @ ..] = argv else { bail!("no command") };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(cwd).env_clear().envs(env).stdin(Stdio::null());
    if let Some(uid) = uid {
        // As root this also drops the supplementary groups.
        command.gid(uid).uid(uid);
    }
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LANG", "C.UTF-8").env("HOME", cwd);
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{} failed ({}):\n{}", argv.join(" "), output.status, crate::logs::last_lines(&text, 20));
    }
    Ok(text)
}

fn launcher(cwd: &Path, uid: Option<u32>) -> Command {
    let mut command = Command::new(SELF);
    command.arg("__launch").arg("--cwd").arg(cwd);
    if let Some(uid) = uid {
        command.arg("--uid").arg(uid.to_string());
    }
    command
}
