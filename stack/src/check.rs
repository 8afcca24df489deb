//! `cargo stack test`: the one command that checks everything. CI calls it too.
//!
//! The stack it tests against is its own, begins empty, and goes down whatever happens: at the end, at a
//! failure, and when this command is interrupted.

mod totals;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::cli::in_ci;
use crate::layout::Layout;
use crate::output::say;
use crate::process::ProcessId;
use crate::services::INSTANCES;
use crate::up::{Extent, Wish, afresh};
use crate::{down, environment, logs, workspace};
use totals::Totals;

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this step.
    #[arg(long, value_enum)]
    only: Option<Step>,
    /// Long tests too: minutes of outages.
    #[arg(long)]
    all: bool,
    /// Where the stack under test keeps its things. Not STACK_DIR: a stack in use is never tested on.
    #[arg(long, env = "STACK_TEST_DIR", default_value = ".stack-test")]
    dir: PathBuf,
    /// The first of its ports.
    #[arg(long, env = "STACK_TEST_PORT", default_value_t = 22_000)]
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// cargo fmt
    Format,
    /// cargo clippy, warnings are errors
    Lint,
    /// cargo deny: licences, duplicates, advisories (when it is installed)
    Deny,
    /// Tests that need nothing
    Unit,
    /// A stack, a payment, the tests that need servers and services, and down again
    Stack,
}

const STEPS: [Step; 5] = [Step::Format, Step::Lint, Step::Deny, Step::Unit, Step::Stack];

/// Places at which a processor or a relay ends. The whole workspace is named with them, so that no third-party crate
/// is built twice.
const FAILPOINTS: &str = "processor-svc/failpoints,cdc-relay/failpoints";

/// # Errors
/// When anything failed; everything has been run by then.
pub fn run(args: &TestArgs) -> Result<()> {
    let layout = Layout::new(Some(args.dir.clone()), args.port)?;
    let mut totals = Totals::default();
    for step in STEPS.into_iter().filter(|step| args.only.is_none_or(|only| only == *step)) {
        let began = Instant::now();
        let name = format!("{step:?}").to_lowercase();
        say(&format!("\n── {name}"));
        let before = totals;
        match step {
            // Names only: how to change them is known to `cargo fmt --all`.
            Step::Format => totals.one(cargo(&layout, &["fmt", "--all", "--check", "--", "-l"])),
            Step::Lint => {
                let lint = format!(
                    "clippy --release --workspace --all-targets --features {FAILPOINTS} --quiet -- -D warnings"
                );
                totals.one(cargo(&layout, &lint.split(' ').collect::<Vec<_>>()));
            }
            Step::Deny => deny(&layout, &mut totals),
            Step::Unit => tests(&layout, &["--lib", "--bins"], &mut totals),
            Step::Stack => against_a_stack(&layout, args.all, &mut totals),
        }
        let failed = totals.failed - before.failed;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        say(&format!("── {name} {word}, {:.0} s", began.elapsed().as_secs_f64()));
    }
    // Made for nothing by the steps that need no stack.
    let _in_use = std::fs::remove_dir(&layout.dir);
    say(&format!("\n{totals}"));
    ensure!(totals.failed == 0, "not everything passed");
    Ok(())
}

fn cargo(layout: &Layout, arguments: &[&str]) -> Result<()> {
    let status = workspace::command(layout, "cargo").args(arguments).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Installing it takes minutes, so that is done only when asked for; advisories come from the network.
fn deny(layout: &Layout, totals: &mut Totals) {
    let installed = || {
        let mut version = workspace::command(layout, "cargo");
        version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    if !installed() && std::env::var("STACK_DENY").is_ok_and(|wanted| wanted == "1") {
        totals.one(cargo(layout, &["install", "cargo-deny", "--locked", "--quiet"]));
    }
    if !installed() {
        return say("cargo-deny is not installed: skipped (STACK_DENY=1 installs it, which takes minutes)");
    }
    totals.one(cargo(layout, &["deny", "check", "bans", "licenses", "sources"]));
    let mut fetch = workspace::command(layout, "cargo");
    fetch.args(["deny", "fetch", "db"]).stdout(Stdio::null()).stderr(Stdio::null());
    if fetch.status().is_ok_and(|status| status.success()) {
        totals.one(cargo(layout, &["deny", "check", "advisories"]));
    } else {
        say("the advisory database cannot be reached: advisories skipped");
    }
}

/// Runs tests, shows them as they go, and adds up what they report. All test programs run, also after a failure.
fn tests(layout: &Layout, which: &[&str], totals: &mut Totals) {
    let mut command = workspace::command(layout, "cargo");
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]).args(which);
    let outcome = environment::variables(layout).and_then(|variables| {
        command.envs(variables);
        watch(command)
    });
    match outcome {
        Ok(reported) => *totals += reported,
        Err(error) => totals.one(Err(error)),
    }
}

fn watch(mut command: Command) -> Result<Totals> {
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut totals = Totals::default();
    if let Some(output) = process.stdout.take() {
        for line in BufReader::new(output).lines() {
            // A test may print anything.
            let Ok(line) = line else { continue };
            totals += Totals::of_line(&line).unwrap_or_default();
            say(&line);
        }
    }
    let status = process.wait()?;
    if !status.success() && totals.failed == 0 {
        // It did not compile, or a test program died before it could count.
        totals.failed = 1;
    }
    Ok(totals)
}

fn against_a_stack(layout: &Layout, all: bool, totals: &mut Totals) {
    let before = totals.failed;
    let owner = ProcessId::me().context("no /proc");
    totals.one(owner.and_then(|owner| {
        let wish = Wish { extent: Extent::Services, yes: in_ci(), owner: Some(owner) };
        afresh(layout, &wish)
    }));
    if totals.failed == before {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        let which: &[&str] = if all { &["--test", "*", "--", "--include-ignored"] } else { &["--test", "*"] };
        tests(layout, which, totals);
        ends(layout, totals);
    }
    if totals.failed > before {
        show_logs(layout);
    }
    totals.one(down::down(layout));
    if totals.failed == before {
        totals.one(down::remove(layout));
    } else {
        say(&format!("Its logs stay in {}", layout.dir.join("logs").display()));
    }
}

/// Processors and relays that end at each of their failpoints. Their programs take the place of those without; the
/// build line puts these back, which it does without compiling (cargo keeps both), so that nobody runs the other.
fn ends(layout: &Layout, totals: &mut Totals) {
    tests(layout, &["--features", FAILPOINTS, "--test", "it", "ends::"], totals);
    totals.one(cargo(layout, &["build", "--release", "--workspace", "--quiet"]));
}

fn show_logs(layout: &Layout) {
    for instance in INSTANCES {
        let end = logs::tail(&layout.log(instance.name), 15);
        if !end.is_empty() {
            say(&format!("\n── the end of {}'s log\n{end}", instance.name));
        }
    }
}
