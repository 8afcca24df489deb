//! The steps of `cargo stack test` that have a stack of their own. It begins empty, and goes down whatever happens.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::before;
use super::ends::{self, ENDS};
use super::suites::{self, Run, Suite};
use super::totals::Totals;
use crate::extras::Extra;
use crate::install::in_ci;
use crate::layout::{Layout, PORTS};
use crate::output::{Progress, say};
use crate::process::ProcessId;
use crate::services::Instance;
use crate::up::{Extent, Wish, afresh};
use crate::workspace::{self, Priority};
use crate::{down, logs};

/// The differences of a stack under test from the plain one.
#[derive(Default)]
struct Setting {
    tls: bool,
    ha: bool,
    /// The number of shards of payments and balance.
    shards: Option<usize>,
    /// The folder of programs that are there: nothing is built.
    programs: Option<PathBuf>,
}

impl Setting {
    /// Runs what is built: whoever compiles beside it holds cargo's lock, and has no processors.
    fn as_built(layout: &Layout) -> Self {
        Self { programs: Some(workspace::folder(layout)), ..Self::default() }
    }
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

/// A payment, loads, the tests that need servers and services, with something else beside them, and the programs with failpoints, which are
/// compiled beside them too. Nothing is done beside a stack that does not come up, or tests that do not compile.
pub fn plain(layout: &Layout, all: bool, beside: impl FnOnce(&mut Totals) + Send, totals: &mut Totals) {
    // Its failures are none of the stack, whose logs say nothing of them.
    let mut aside = Totals::default();
    with_stack(layout, &Setting::default(), totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        // Before the tests, whose parked messages no audit but theirs can explain. How fast it goes is not judged.
        let loads: &[&str] =
            if all { &["smoke", "load", "stress", "spike", "soak", "hot-account"] } else { &["smoke"] };
        for load in loads {
            totals.one(workspace::e2e(layout, &["load", load, "--without-limits"]));
        }
        let suites = match build(layout) {
            Ok(suites) => suites,
            Err(error) => return totals.one(Err(error)),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                beside(&mut aside);
                aside.one(ends::prepare(layout));
            });
            totals.all(integration(layout, all, &suites));
        });
        ends::run(layout, &suites, totals);
    });
    *totals += aside;
}

/// The integration tests of all packages, and the examples, which they run.
fn build(layout: &Layout) -> Result<Vec<Suite>> {
    let suites = suites::build(layout, &INTEGRATION, Priority::Normal)?;
    Progress::default()
        .step("examples", |step| workspace::build(layout, &["--examples"], step).map(|()| String::new()))?;
    Ok(suites)
}

/// The arguments by which cargo builds the integration tests of all packages.
const INTEGRATION: [&str; 3] = ["--workspace", "--test", "*"];

/// The modules of the tests of the whole that have a stack to themselves: they have a test that stops or kills parts of it, which refuses to
/// run beside others, or that freezes servers of its own. The second ones have less to do, since stacks of other kinds come after them.
const ALONE: [&[&str]; 2] = [
    &[
        "canaries::",
        "cancel::",
        "contract::",
        "expiry::",
        "following::",
        "growing::",
        "http2::",
        "leaders::",
        "operators::",
        "pay_page::",
        "poison::",
        "rolling::",
        "scaling::",
        "search::",
        "sharded::",
        "shedding::",
        "subscribe::",
    ],
    &["kills::", "outages::"],
];

/// The relay's tests wait for servers of their own for most of their time, so all others run beside them, also those of the whole that only
/// use the stack. Those that stop or kill parts of it come last, some on a second stack, since they wait for most of their time too.
fn integration(layout: &Layout, all: bool, suites: &[Suite]) -> Result<Totals> {
    let (whole, others): (Vec<Suite>, Vec<Suite>) = suites.iter().cloned().partition(Suite::is_whole);
    let (relay, others): (Vec<Suite>, Vec<Suite>) =
        others.into_iter().partition(|suite| suite.package == "cdc-relay");
    let arguments: Vec<&str> = match all {
        true => {
            ["--include-ignored"].into_iter().chain(without(&[ENCRYPTED, SHARDED, GROWING, ENDS])).collect()
        }
        false => Vec::new(),
    };
    // The tests of the audit take nearly half as long as all others that are neither the relay's nor of the whole.
    let (audit, others): (Vec<Suite>, Vec<Suite>) =
        others.into_iter().partition(|suite| suite.package == "coroctl");
    let beside: Vec<&str> = arguments.iter().copied().chain(ALONE.into_iter().flat_map(without)).collect();
    let mut lanes = [relay, others, audit].map(|suites| suites::runs(suites, &arguments)).to_vec();
    lanes[2].extend(suites::runs(whole.clone(), &beside).into_iter().map(Run::beside));
    let second = second(layout)?;
    let mut totals = suites::run(layout, lanes, Priority::Normal)?;
    let [here, there] = ALONE.map(|modules| {
        let arguments: Vec<&str> = arguments.iter().chain(modules).copied().collect();
        suites::runs(whole.clone(), &arguments)
    });
    let mut on_second = Totals::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            with_stack(&second, &Setting::as_built(layout), &mut on_second, |totals| {
                totals.all(suites::run(&second, vec![there], Priority::Normal));
            });
            // With `--all` they have steps of their own, and more than this.
            if !all {
                briefly_sharded(&second, whole, &mut on_second);
                briefly_available(&second, &mut on_second);
            }
        });
        totals.all(suites::run(layout, vec![here], Priority::Normal));
    });
    totals += on_second;
    Ok(totals)
}

/// One shard away, and buckets that move under load.
fn briefly_sharded(layout: &Layout, whole: Vec<Suite>, totals: &mut Totals) {
    let setting = Setting { shards: Some(2), ..Setting::as_built(layout) };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        let lane = suites::runs(whole, &[SHARDED, "--include-ignored"]);
        totals.all(suites::run(layout, vec![lane], Priority::Normal));
    });
}

/// A highly available stack that loses Postgres' leader under load.
fn briefly_available(layout: &Layout, totals: &mut Totals) {
    let setting = Setting { ha: true, ..Setting::as_built(layout) };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        totals.one(workspace::e2e_as_built(layout, &["leader", LOSSES[0]]));
    });
}

/// Another stack under test, beside the one that is up.
fn second(layout: &Layout) -> Result<Layout> {
    let mut dir = layout.dir.clone().into_os_string();
    dir.push("-second");
    Layout::new(Some(dir.into()), layout.base_port + PORTS)
}

/// The arguments by which a test program leaves out tests whose names contain one of these.
fn without<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    names.iter().flat_map(|name| ["--skip", name])
}

/// The tests of the encrypted stack.
const ENCRYPTED: &str = "encrypted::";

/// The whole, encrypted: a payment and its life, kills under load, the audit; and nothing is answered in plain text.
pub fn encrypted(layout: &Layout, totals: &mut Totals) {
    let setting = Setting { tls: true, ..Setting::default() };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        let chaos =
            ["chaos", "--seed", "3", "--payments", "300", "--kills", "4", "--rate", "50", "--users", "20"];
        totals.one(workspace::e2e(layout, &chaos));
        totals.one(workspace::coroctl(layout, &["audit"]));
        totals.all(whole(layout, ENCRYPTED));
    });
}

/// The tests of the whole with this prefix, those for a stack of their kind.
fn whole(layout: &Layout, prefix: &str) -> Result<Totals> {
    let suites = suites::build(layout, &INTEGRATION, Priority::Normal)?;
    let suite: Vec<Suite> = suites.into_iter().filter(Suite::is_whole).collect();
    suites::run(layout, vec![suites::runs(suite, &[prefix, "--include-ignored"])], Priority::Normal)
}

/// The tests of the stack with shards.
const SHARDED: &str = "sharded::";
/// The test of a stack that gets shards.
const GROWING: &str = "growing::";

/// A payment, a load, one shard away, and buckets that move under load. Then a stack of its own gets shards, with kills of our processes.
pub fn sharded(layout: &Layout, totals: &mut Totals) {
    let setting = Setting { shards: Some(2), ..Setting::default() };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        totals.one(workspace::e2e(layout, &["load", "smoke", "--without-limits"]));
        totals.all(whole(layout, SHARDED));
    });
    with_stack(layout, &Setting::default(), totals, |totals| totals.all(whole(layout, GROWING)));
}

/// The drills, on a stack on which nothing else is wrong: an alert that fires already would show nothing.
pub fn drills(layout: &Layout, totals: &mut Totals) {
    with_stack(layout, &Setting::default(), totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        totals.one(workspace::e2e(layout, &["drill", "--all"]));
    });
}

/// What a highly available stack can lose (`cargo stack leader --help`).
const LOSSES: [&str; 9] =
    ["kill", "freeze", "patroni", "cut", "standbys", "etcd", "all-etcd", "kafka", "rabbitmq"];

/// Each loss under load: nothing that was accepted is lost, nothing is done twice, and the time without payments is bounded.
pub fn leaders(layout: &Layout, totals: &mut Totals) {
    let setting = Setting { ha: true, ..Setting::default() };
    with_stack(layout, &setting, totals, |totals| {
        totals.one(workspace::coroctl(layout, &["first-payment"]));
        for loss in LOSSES {
            totals.one(workspace::e2e(layout, &["leader", loss]));
        }
    });
}

/// A stack of the revision before gets this one's programs and migrations, by the runbook and under load.
pub fn upgrade(layout: &Layout, totals: &mut Totals) {
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

fn show_logs(layout: &Layout) {
    for instance in Instance::of(layout) {
        let end = logs::tail(&layout.log(instance.name), 15);
        if !end.is_empty() {
            say(&format!("\n── the end of {}'s log\n{end}", instance.name));
        }
    }
}
