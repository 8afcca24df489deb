//! Cargo and our own binaries, run with an environment that `cargo stack` itself has not leaked into.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::environment;
use crate::layout::Layout;
use crate::logs;
use crate::output::{Progress, Step};

/// The folder of what cargo builds.
pub fn target(layout: &Layout) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    layout.root.join(target)
}

/// The folder of release binaries.
pub fn folder(layout: &Layout) -> PathBuf {
    target(layout).join("release")
}

/// Where cargo puts a release binary.
pub fn binary(layout: &Layout, name: &str) -> PathBuf {
    folder(layout).join(name)
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

/// The urgency of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Normal,
    /// It gets the processors only while nobody else wants them.
    Idle,
}

/// Runs its arguments at idle priority. Where the kernel divides the processors among sessions first (`sched_autogroup`), idle
/// processes would have the share of their session, so they are in one of their own, which has the smallest share. The terminal's
/// interrupt does not reach that session: all of it ends when we do.
const AT_IDLE: [&str; 6] = [
    "setsid",
    "setpriv",
    "--pdeathsig=TERM",
    "sh",
    "-c",
    r#"echo 19 2> /dev/null > /proc/self/autogroup || true
    trap 'trap - TERM; kill 0' TERM
    chrt --idle 0 "$0" "$@" &
    wait $!"#,
];

/// As [`command`], with a priority.
pub fn command_with(layout: &Layout, program: &str, priority: Priority) -> Command {
    if priority == Priority::Normal {
        return command(layout, program);
    }
    let [first, rest @ ..] = AT_IDLE;
    let mut command = command(layout, first);
    command.args(rest).arg(program);
    command
}

/// The one build line. `targets` narrows what is built, not how: features are those of the whole workspace.
///
/// # Errors
/// When it does not compile; the end of the output is in the message, all of it in `logs build`.
pub fn build(layout: &Layout, targets: &[&str], step: &Step) -> Result<()> {
    build_with(layout, targets, Priority::Normal, step)
}

/// As [`build`], with a priority.
///
/// # Errors
/// As there.
pub fn build_with(layout: &Layout, targets: &[&str], priority: Priority, step: &Step) -> Result<()> {
    let mut command = command_with(layout, "cargo", priority);
    command.args(["build", "--release", "--workspace"]).args(targets);
    cargo(layout, command, "build", step).map(drop)
}

/// Runs a command of cargo that compiles, shows how many crates are done of all, and returns what it prints on stdout.
///
/// # Errors
/// When it fails; the end of its output is in the message, all of it in the log of this name.
pub fn cargo(layout: &Layout, mut command: Command, log: &str, step: &Step) -> Result<String> {
    std::fs::create_dir_all(layout.dir.join("logs"))?;
    let path = layout.log(log);
    let mut log = std::fs::File::create(&path)?;
    // Cargo shows its progress to terminals only, unless it is asked.
    command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "100");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let printed = std::thread::scope(|scope| {
        let printed = scope.spawn(|| stdout.map(std::io::read_to_string).unwrap_or(Ok(String::new())));
        if let Some(stderr) = stderr {
            // Progress overwrites itself: its lines end in a carriage return, and follow all others at once.
            for lines in BufReader::new(stderr).split(b'\r').map_while(Result::ok) {
                for line in String::from_utf8_lossy(&lines).lines() {
                    match progress_of(line) {
                        Some(progress) => step.now(progress),
                        None => writeln!(log, "{line}")?,
                    }
                }
            }
        }
        Ok::<_, anyhow::Error>(printed.join().unwrap_or(Ok(String::new()))?)
    })?;
    if !process.wait()?.success() {
        bail!("{}\n(all of it: {})", logs::tail(&path, 40), path.display());
    }
    Ok(printed)
}

/// Cargo's progress bar in words: `Building [=====>    ] 12/345: a, b` is `12 of 345 crates: a, b`.
fn progress_of(line: &str) -> Option<String> {
    let (bar, state) = line.trim().strip_prefix("Building [")?.split_once("] ")?;
    let (counts, names) = state.split_once(": ").unwrap_or((state, ""));
    let (done, all) = counts.split_once('/')?;
    let is_count = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (bar.bytes().all(|byte| b"=> ".contains(&byte)) && is_count(done) && is_count(all))
        .then(|| format!("{done} of {all} crates: {}", names.trim()))
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
    e2e_as_built(layout, arguments)
}

/// As [`e2e`], the program that is there.
///
/// # Errors
/// As there.
pub fn e2e_as_built(layout: &Layout, arguments: &[&str]) -> Result<()> {
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
        bail!("{} is not built: `cargo build --release --workspace` builds it", program.display());
    }
    let mut command = command(layout, &program.display().to_string());
    command.args(arguments).envs(environment::variables(layout)?).envs(environment::trust(layout));
    command.status().with_context(|| format!("cannot run {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_cargo_in_words() {
        let line = "    Building [==>                       ] 12/345: serde, rdkafka-sys(build)      ";
        assert_eq!(progress_of(line).as_deref(), Some("12 of 345 crates: serde, rdkafka-sys(build)"));
        for other in
            ["   Compiling serde v1.0.0", "    Finished `release` profile", "Building [x] 1/2: a", ""]
        {
            assert_eq!(progress_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_command_at_idle_priority_is_one_and_its_session_has_the_smallest_share() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let script = r#"chrt --pid $$; cat /proc/self/autogroup 2> /dev/null; echo "[$0] [$1] [$2]""#;
        let mut command = command_with(&layout, "sh", Priority::Idle);
        command.args(["-c", script, "zero", "one two", "three"]);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(said.contains("SCHED_IDLE") && said.contains("[zero] [one two] [three]"), "{said}");
        assert!(!said.contains("nice") || said.contains("nice 19"), "{said}");
        let mut command = command_with(&layout, "sh", Priority::Idle);
        let status = command.args(["-c", "exit 7"]).status().unwrap();
        assert_eq!(status.code(), Some(7), "its exit status is the command's");
    }

    #[test]
    fn all_of_a_session_at_idle_priority_ends_with_the_one_that_is_asked_to() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let mut command = command_with(&layout, "sh", Priority::Idle);
        // A compiler, which cargo would leave behind.
        command.args(["-c", "sleep 60 & echo $!; wait"]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = |number: i32| rustix::process::Pid::from_raw(number).unwrap();
        let sleeping = pid(line.trim().parse().unwrap());
        rustix::process::kill_process(pid(process.id().cast_signed()), rustix::process::Signal::TERM)
            .unwrap();
        assert!(!process.wait().unwrap().success());
        let began = std::time::Instant::now();
        while rustix::process::test_kill_process(sleeping).is_ok() {
            assert!(began.elapsed().as_secs() < 10, "it goes on");
            std::thread::yield_now();
        }
    }

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
