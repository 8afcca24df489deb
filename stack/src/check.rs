//! `cargo stack test`: the one command that checks everything. CI calls it too.
//!
//! * The stack it tests against is its own, begins empty, and goes down whatever happens: at the end, at a
//!   failure, and when this command is interrupted.
//! * All test programs are built at once. Those that only wait for servers run side by side; tests that kill what
//!   others use run alone.
//! * `--quick` is the loop at a desk: lints of everything, and unit tests of the packages that differ from main.

mod before;
mod changed;
mod libtest;
mod suites;
mod totals;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::extras::Extra;
use crate::install::{Purpose, in_ci};
use crate::layout::Layout;
use crate::output::{Progress, say};
use crate::process::ProcessId;
use crate::servers::{collector, kafka};
use crate::services::Instance;
use crate::up::{Extent, Wish, afresh};
use crate::{compose, down, install, logs, workspace};
use suites::{Kind, Run, Suite};
use totals::Totals;

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this step.
    #[arg(long, value_enum)]
    only: Option<Step>,
    /// Format, lints, and the unit tests of what changed since main: seconds, for the loop at a desk.
    #[arg(long, conflicts_with_all = ["only", "all"])]
    quick: bool,
    /// Long tests too: minutes of outages, subscribers in other languages, Keycloak.
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

/// Places at which a processor or a relay ends. The whole workspace is named with them, so that no third-party crate
/// is built twice.
const FAILPOINTS: &str = "processor-svc/failpoints,cdc-relay/failpoints";

/// # Errors
/// When anything failed; everything has been run by then.
pub fn run(args: &TestArgs) -> Result<()> {
    let layout = Layout::new(Some(args.dir.clone()), args.port)?;
    let steps = steps(args);
    let mut totals = Totals::default();
    // Compiling needs packages too.
    install::ensure(&layout, purpose(args, &steps), in_ci(), &Progress::default())?;
    for step in steps {
        let began = Instant::now();
        let name = format!("{step:?}").to_lowercase();
        say(&format!("\n── {name}"));
        let before = totals.failed();
        match step {
            // Names only: how to change them is known to `cargo fmt --all`.
            Step::Format => totals.one(cargo(&layout, &["fmt", "--all", "--check", "--", "-l"])),
            Step::Lint => lint(&layout, &mut totals),
            Step::Deny => deny(&layout, &mut totals),
            Step::Unit => totals.all(unit(&layout, args.quick)),
            Step::Kubernetes => totals.one(kubernetes(&layout, args.all)),
            Step::Stack => {
                let tests = |totals: &mut Totals| plain(&layout, args.all, totals);
                with_stack(&layout, &Setting::default(), &mut totals, tests);
            }
            Step::Encrypted => {
                let setting = Setting { tls: true, ..Setting::default() };
                with_stack(&layout, &setting, &mut totals, |totals| encrypted(&layout, totals));
            }
            Step::Drills => {
                with_stack(&layout, &Setting::default(), &mut totals, |totals| drills(&layout, totals));
            }
            Step::Leaders => {
                let setting = Setting { ha: true, ..Setting::default() };
                with_stack(&layout, &setting, &mut totals, |totals| leaders(&layout, totals));
            }
            Step::Shards => {
                let setting = Setting { shards: Some(2), ..Setting::default() };
                with_stack(&layout, &setting, &mut totals, |totals| sharded(&layout, totals));
            }
            Step::Upgrade => upgrade(&layout, &mut totals),
            Step::Containers => totals.one(containers(&layout)),
        }
        let word = if totals.failed() == before { "ok" } else { "FAILED" };
        say(&format!("── {name} {word}, {:.0} s", began.elapsed().as_secs_f64()));
    }
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

fn cargo(layout: &Layout, arguments: &[&str]) -> Result<()> {
    let status = workspace::command(layout, "cargo").args(arguments).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

fn lint(layout: &Layout, totals: &mut Totals) {
    let arguments = ["clippy", "--release", "--workspace", "--all-targets", "--features", FAILPOINTS];
    totals.one(Progress::default().step("clippy", |step| {
        let mut command = workspace::command(layout, "cargo");
        command.args(arguments).args(["--", "-D", "warnings"]);
        workspace::cargo(layout, command, "lint", step)?;
        Ok(String::new())
    }));
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

fn unit(layout: &Layout, quick: bool) -> Result<Totals> {
    let mut arguments = vec!["--workspace".to_owned()];
    if quick {
        let packages = changed::packages(layout)?;
        if packages.is_empty() {
            say("no package differs from main");
            return Ok(Totals::default());
        }
        arguments = packages.into_iter().flat_map(|package| ["--package".to_owned(), package]).collect();
        // No program has tests of its own.
        arguments.push("--lib".to_owned());
    }
    let suites = suites::build(layout, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    let unit: Vec<Suite> = suites.into_iter().filter(|suite| suite.kind == Kind::Unit).collect();
    let (first, second) = unit.split_at(unit.len() / 2);
    suites::run(layout, [first, second].map(|suites| suites::runs(suites.to_vec(), &[])).to_vec())
}

/// What a stack under test is not by itself.
#[derive(Default)]
struct Setting {
    tls: bool,
    ha: bool,
    /// Of payments and balance.
    shards: Option<usize>,
    /// The folder of the programs of another revision.
    programs: Option<PathBuf>,
}

/// Runs tests against a stack of their own, which goes down whatever happens.
fn with_stack(layout: &Layout, setting: &Setting, totals: &mut Totals, tests: impl FnOnce(&mut Totals)) {
    let Setting { tls, ha, shards, programs } = setting;
    let before = totals.failed();
    let owner = ProcessId::me().context("no /proc");
    totals.one(owner.and_then(|owner| {
        // Tests need every part; traces, whose collector is compiled for minutes, only on the encrypted stack. Nine more servers
        // leave no room for parts, and those of shards need none.
        let parts = Extra::value_variants().iter().copied();
        let has_parts = !*ha && shards.is_none();
        let with = parts.filter(|part| has_parts && (*tls || *part != Extra::Traces)).collect();
        let (owner, programs) = (Some(owner), programs.clone());
        let (extent, yes) = (Extent::Services, in_ci());
        let wish = Wish { extent, with, yes, owner, tls: *tls, ha: *ha, shards: *shards, programs };
        afresh(layout, &wish)
    }));
    if totals.failed() == before {
        tests(totals);
    }
    if totals.failed() > before {
        show_logs(layout);
    }
    totals.one(down::down(layout));
    if totals.failed() == before {
        totals.one(down::remove(layout));
    } else {
        say(&format!("Its logs stay in {}", layout.dir.join("logs").display()));
    }
}

/// A payment, loads, the tests that need servers and services, and the programs with failpoints.
fn plain(layout: &Layout, all: bool, totals: &mut Totals) {
    totals.one(workspace::coroctl(layout, &["first-payment"]));
    // Before the tests, whose parked messages no audit but theirs can explain. How fast it goes is not judged.
    let loads: &[&str] =
        if all { &["smoke", "load", "stress", "spike", "soak", "hot-account"] } else { &["smoke"] };
    for load in loads {
        totals.one(workspace::e2e(layout, &["load", load, "--without-limits"]));
    }
    match suites::build(layout, &["--workspace"]) {
        Ok(suites) => {
            totals.all(integration(layout, all, &suites));
            ends(layout, &suites, totals);
        }
        Err(error) => totals.one(Err(error)),
    }
}

/// The modules of the tests of the whole that run when no other program uses the stack or the processors: they have a test that stops or
/// kills parts of the stack, which refuses to run beside others, or that freezes servers of its own.
const ALONE: [&str; 18] = [
    "canaries::",
    "cancel::",
    "contract::",
    "expiry::",
    "following::",
    "http2::",
    "kills::",
    "leaders::",
    "operators::",
    "outages::",
    "pay_page::",
    "poison::",
    "rolling::",
    "scaling::",
    "search::",
    "sharded::",
    "shedding::",
    "subscribe::",
];

/// The relay's tests wait for servers of their own for most of their time, so all others run beside them, also those of the whole that only
/// use the stack. Those that stop or kill parts of it come last and alone.
fn integration(layout: &Layout, all: bool, suites: &[Suite]) -> Result<Totals> {
    let (whole, others): (Vec<Suite>, Vec<Suite>) =
        suites.iter().filter(|suite| suite.kind == Kind::Integration).cloned().partition(Suite::is_whole);
    let (relay, others): (Vec<Suite>, Vec<Suite>) =
        others.into_iter().partition(|suite| suite.package == "cdc-relay");
    let arguments: Vec<&str> = match all {
        true => ["--include-ignored"].into_iter().chain(without(&[ENCRYPTED, SHARDED, ENDS])).collect(),
        false => Vec::new(),
    };
    let beside = arguments.iter().copied().chain(without(&ALONE)).collect::<Vec<_>>();
    let alone = arguments.iter().chain(&ALONE).copied().collect::<Vec<_>>();
    let mut lanes = vec![suites::runs(relay, &arguments), suites::runs(others, &arguments)];
    lanes[1].extend(suites::runs(whole.clone(), &beside).into_iter().map(Run::beside));
    let mut totals = suites::run(layout, lanes)?;
    totals += suites::run(layout, vec![suites::runs(whole, &alone)])?;
    Ok(totals)
}

/// The arguments by which a test program leaves out tests whose names contain one of these.
fn without<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    names.iter().flat_map(|name| ["--skip", name])
}

/// The tests of the encrypted stack.
const ENCRYPTED: &str = "encrypted::";

/// The whole, encrypted: a payment and its life, kills under load, the audit; and nothing is answered in plain text.
fn encrypted(layout: &Layout, totals: &mut Totals) {
    totals.one(workspace::coroctl(layout, &["first-payment"]));
    let chaos =
        ["chaos", "--seed", "3", "--payments", "300", "--kills", "4", "--rate", "50", "--users", "20"];
    totals.one(workspace::e2e(layout, &chaos));
    totals.one(workspace::coroctl(layout, &["audit"]));
    totals.all(whole(layout, ENCRYPTED));
}

/// The tests of the whole with this prefix, those for a stack of their kind.
fn whole(layout: &Layout, prefix: &str) -> Result<Totals> {
    let suites = suites::build(layout, &["--workspace"])?;
    let suite: Vec<Suite> = suites.into_iter().filter(Suite::is_whole).collect();
    suites::run(layout, vec![suites::runs(suite, &[prefix, "--include-ignored"])])
}

/// The tests of the stack with shards.
const SHARDED: &str = "sharded::";

/// A payment, a load, one shard away, and buckets that move under load.
fn sharded(layout: &Layout, totals: &mut Totals) {
    totals.one(workspace::coroctl(layout, &["first-payment"]));
    totals.one(workspace::e2e(layout, &["load", "smoke", "--without-limits"]));
    totals.all(whole(layout, SHARDED));
}

/// The drills, on a stack on which nothing else is wrong: an alert that fires already would show nothing.
fn drills(layout: &Layout, totals: &mut Totals) {
    totals.one(workspace::coroctl(layout, &["first-payment"]));
    totals.one(workspace::e2e(layout, &["drill", "--all"]));
}

/// What a highly available stack can lose (`cargo stack leader --help`).
const LOSSES: [&str; 9] =
    ["kill", "freeze", "patroni", "cut", "standbys", "etcd", "all-etcd", "kafka", "rabbitmq"];

/// Each loss under load: nothing that was accepted is lost, nothing is done twice, and the time without payments is bounded.
fn leaders(layout: &Layout, totals: &mut Totals) {
    totals.one(workspace::coroctl(layout, &["first-payment"]));
    for loss in LOSSES {
        totals.one(workspace::e2e(layout, &["leader", loss]));
    }
}

/// A stack of the revision before gets this one's programs and migrations, by the runbook and under load.
fn upgrade(layout: &Layout, totals: &mut Totals) {
    let programs = match before::programs(layout) {
        Ok(Some(programs)) => programs,
        Ok(None) => return say("git knows no revision before this one: skipped"),
        Err(error) => return totals.one(Err(error)),
    };
    let setting = Setting { programs: Some(programs), ..Setting::default() };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        let release = workspace::folder(layout).display().to_string();
        totals.one(workspace::e2e(layout, &["drill", "upgrade", "--release", &release]));
    });
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

/// The tests of programs with failpoints.
const ENDS: &str = "ends::";

/// Processors and relays that end at each of their failpoints. The tests are those that are built already: they run the
/// program, and only the programs are built again. These take the place of those without failpoints, which the last line
/// puts back without compiling (cargo keeps both), so that nobody runs the other.
fn ends(layout: &Layout, suites: &[Suite], totals: &mut Totals) {
    let programs = ["processor-svc", "cdc-relay"];
    let targets = programs.iter().flat_map(|program| ["--bin", program]);
    let arguments: Vec<&str> = ["--features", FAILPOINTS].into_iter().chain(targets).collect();
    let with_failpoints = Progress::default()
        .step("failpoints", |step| workspace::build(layout, &arguments, step).map(|()| String::new()));
    totals.all(with_failpoints.and_then(|()| {
        let of_programs =
            |suite: &&Suite| suite.kind == Kind::Integration && programs.contains(&suite.package.as_str());
        let lane = |suite: &Suite| suites::runs(vec![suite.clone()], &["--ignored", ENDS]);
        suites::run(layout, suites.iter().filter(of_programs).map(lane).collect())
    }));
    totals.one(cargo(layout, &["build", "--release", "--workspace", "--quiet"]));
}

fn show_logs(layout: &Layout) {
    for instance in Instance::of(layout) {
        let end = logs::tail(&layout.log(instance.name), 15);
        if !end.is_empty() {
            say(&format!("\n── the end of {}'s log\n{end}", instance.name));
        }
    }
}
