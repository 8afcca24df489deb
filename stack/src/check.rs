//! `cargo stack test`: the one command that checks everything. CI calls it too.
//!
//! * The stack it tests against is its own, begins empty, and goes down whatever happens: at the end, at a
//!   failure, and when this command is interrupted.
//! * The tests that need servers leave most of the processors idle, so lints and unit tests are made and run beside them, at the
//!   lowest priority. Those that only wait for servers run side by side; tests that kill what others use run alone.
//! * `--quick` is the loop at a desk: lints of everything, and unit tests of the packages that differ from main.

mod before;
mod changed;
mod ends;
mod libtest;
mod lint;
mod stacks;
mod suites;
mod totals;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use self::lint::{cargo, deny, lint};
use self::totals::Totals;
use crate::install::{Purpose, in_ci};
use crate::layout::{EPHEMERAL_FIRST, Layout, PORTS};
use crate::output::{Progress, say};
use crate::servers::{collector, kafka};
use crate::workspace::Priority;
use crate::{compose, install, workspace};

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this step.
    #[arg(long, value_enum)]
    only: Option<Step>,
    /// Format, lints, and the unit tests of what changed since main: seconds, for the loop at a desk.
    #[arg(long, conflicts_with_all = ["only", "all"])]
    quick: bool,
    /// Long tests too: loads at full length, minutes of outages, drills, Keycloak.
    #[arg(long)]
    all: bool,
    /// Where the stack under test keeps its things. Not STACK_DIR: a stack in use is never tested on.
    #[arg(long, env = "STACK_TEST_DIR", default_value = ".stack-test")]
    dir: PathBuf,
    /// The first of its ports, 200 of them, and of as many of the second stack that some tests have.
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
    /// The manifests of compose/kubernetes against the schemas of Kubernetes and of its operators
    Kubernetes,
    /// A stack, a payment, the tests that need servers and services, and down again
    Stack,
    /// A stack whose every link is encrypted: a payment, faults, the audit; with --all
    Encrypted,
    /// A stack on which each drill is played: what breaks, its alert, its runbook; with --all
    Drills,
    /// A highly available stack, which loses nodes of Postgres, of etcd, of Kafka and of RabbitMQ under load; with --all
    Leaders,
    /// A stack with two shards: a load, a shard that is away, buckets that move; with --all
    Shards,
    /// A stack of the revision before, upgraded to this one under load; with --all
    Upgrade,
    /// compose.yaml on a Docker engine of its own: a payment, the audit, what the file promises; with --all, as root
    Containers,
}

const STEPS: [Step; 12] = [
    Step::Format,
    Step::Lint,
    Step::Deny,
    Step::Unit,
    Step::Kubernetes,
    Step::Stack,
    Step::Encrypted,
    Step::Drills,
    Step::Leaders,
    Step::Shards,
    Step::Upgrade,
    Step::Containers,
];
/// Those that `--all` adds.
const LONG_STEPS: [Step; 6] =
    [Step::Encrypted, Step::Drills, Step::Leaders, Step::Shards, Step::Upgrade, Step::Containers];
const QUICK_STEPS: [Step; 3] = [Step::Format, Step::Lint, Step::Unit];

/// # Errors
/// When anything failed; everything has been run by then.
pub fn run(args: &TestArgs) -> Result<()> {
    let port_max = EPHEMERAL_FIRST - 2 * PORTS;
    ensure!(args.port <= port_max, "STACK_TEST_PORT: {port_max} at most");
    let layout = Layout::new(Some(args.dir.clone()), args.port)?;
    let steps = steps(args);
    let mut totals = Totals::default();
    // Compiling needs packages too.
    install::ensure(&layout, purpose(args, &steps), in_ci(), &Progress::default())?;
    Check { layout: &layout, args, priority: Priority::Normal }.all(steps, &mut totals);
    // Made for nothing by the steps that need no stack.
    let _in_use = std::fs::remove_dir(&layout.dir);
    if totals.failed() > 0 {
        say("\nWhat failed:");
    }
    for failure in totals.failures() {
        say(&format!("  {failure}"));
    }
    say(&format!("\n{totals}"));
    ensure!(totals.failed() == 0, "not everything passed");
    Ok(())
}

/// The arguments of every step.
#[derive(Clone, Copy)]
struct Check<'a> {
    layout: &'a Layout,
    args: &'a TestArgs,
    priority: Priority,
}

impl Check<'_> {
    /// Runs steps in their order, but for those that wait for the tests of a stack, to run beside them.
    fn all(self, steps: Vec<Step>, totals: &mut Totals) {
        let has_stack = steps.contains(&Step::Stack);
        let (mut waiting, now): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|step| has_stack && [Step::Lint, Step::Unit].contains(step));
        for step in now {
            self.timed(step, &mut waiting, totals);
        }
        // There was no stack to run them beside.
        for step in std::mem::take(&mut waiting) {
            self.timed(step, &mut waiting, totals);
        }
    }

    /// Says what begins, and how it ended.
    fn timed(self, step: Step, waiting: &mut Vec<Step>, totals: &mut Totals) {
        let (began, before) = (Instant::now(), totals.failed());
        let name = format!("{step:?}").to_lowercase();
        say(&format!("\n── {name}"));
        self.play(step, waiting, totals);
        let word = if totals.failed() == before { "ok" } else { "FAILED" };
        say(&format!("── {name} {word}, {:.0} s", began.elapsed().as_secs_f64()));
    }

    fn play(self, step: Step, waiting: &mut Vec<Step>, totals: &mut Totals) {
        let Self { layout, args, priority } = self;
        match step {
            // Names only: how to change them is known to `cargo fmt --all`.
            Step::Format => totals.one(cargo(layout, &["fmt", "--all", "--check", "--", "-l"])),
            Step::Lint => lint(layout, priority, totals),
            Step::Deny => deny(layout, totals),
            Step::Unit => totals.all(unit(layout, args.quick, priority)),
            Step::Kubernetes => totals.one(kubernetes(layout, args.all)),
            Step::Stack => {
                let beside = |totals: &mut Totals| {
                    Self { priority: Priority::Idle, ..self }.all(std::mem::take(waiting), totals);
                };
                stacks::plain(layout, args.all, beside, totals);
            }
            Step::Encrypted => stacks::encrypted(layout, totals),
            Step::Drills => stacks::drills(layout, totals),
            Step::Leaders => stacks::leaders(layout, totals),
            Step::Shards => stacks::sharded(layout, totals),
            Step::Upgrade => stacks::upgrade(layout, totals),
            Step::Containers => totals.one(containers(layout)),
        }
    }
}

/// The steps that the arguments choose.
fn steps(args: &TestArgs) -> Vec<Step> {
    let all: &[Step] = if args.quick { &QUICK_STEPS } else { &STEPS };
    let chosen = |step: &&Step| match args.only {
        Some(only) => only == **step,
        None => args.all || !LONG_STEPS.contains(*step),
    };
    all.iter().filter(chosen).copied().collect()
}

fn purpose(args: &TestArgs, steps: &[Step]) -> Purpose {
    match (args.all, steps.contains(&Step::Stack)) {
        (true, _) => Purpose::AllTests,
        (false, true) => Purpose::Tests,
        (false, false) => Purpose::Stack,
    }
}

/// Libraries alone: no program has tests of its own.
fn unit(layout: &Layout, quick: bool, priority: Priority) -> Result<Totals> {
    let mut arguments = vec!["--lib".to_owned()];
    if quick {
        let packages = changed::packages(layout)?;
        if packages.is_empty() {
            say("no package differs from main");
            return Ok(Totals::default());
        }
        arguments.extend(packages.into_iter().flat_map(|package| ["--package".to_owned(), package]));
    } else {
        arguments.push("--workspace".to_owned());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let unit = suites::build(layout, &arguments, priority)?;
    let (first, second) = unit.split_at(unit.len() / 2);
    let lanes = [first, second].map(|suites| suites::runs(suites.to_vec(), &[])).to_vec();
    suites::run(layout, lanes, priority)
}

/// Checks the manifests by kubeconform, which Go compiles at the first time; with `all` by a kube-apiserver too.
fn kubernetes(layout: &Layout, all: bool) -> Result<()> {
    if collector::go().is_none() {
        say("Go is not installed: skipped");
        return Ok(());
    }
    let script = layout.root.join("compose/kubernetes/verify/run");
    let mut command = workspace::command(layout, &script.display().to_string());
    command.arg(if all { "server" } else { "schemas" });
    command.env("KUBERNETES_VERIFY_CACHE", layout.cache.join("kubernetes")).stdin(Stdio::null());
    ensure!(command.status().context("cannot run it")?.success(), "compose/kubernetes/verify/run failed");
    Ok(())
}

/// Runs compose.yaml on a Docker engine, with stand-ins for the images of others. Kafka's jars are those of a stack.
fn containers(layout: &Layout) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        say("a Docker engine of its own needs root: skipped");
        return Ok(());
    }
    Progress::default().step("build", |step| {
        let targets: Vec<&str> = compose::PROGRAMS.into_iter().flat_map(|name| ["--bin", name]).collect();
        workspace::build(layout, &targets, step)?;
        if !kafka::downloaded(layout) {
            kafka::download(layout, step)?;
        }
        if !kafka::agent::downloaded(layout) {
            kafka::agent::download(layout, step)?;
        }
        Ok(String::new())
    })?;
    let script = layout.root.join("compose/verify/run");
    let mut command = workspace::command(layout, &script.display().to_string());
    command.env("KAFKA_JARS", kafka::jars(layout)).env("KAFKA_AGENT", kafka::agent::folder(layout));
    command.stdin(Stdio::null());
    ensure!(command.status().context("cannot run it")?.success(), "compose/verify/run failed");
    Ok(())
}
