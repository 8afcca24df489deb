//! Processors and relays that end at each of their failpoints.
//!
//! The tests are those that are built already: they run the programs, and only these are built again, beside the stack under test.

use anyhow::Result;

use super::lint::{FAILPOINTS, cargo};
use super::suites::{self, Suite};
use super::totals::Totals;
use crate::layout::Layout;
use crate::output::Progress;
use crate::workspace::{self, Priority};

/// The tests of programs with failpoints.
pub const ENDS: &str = "ends::";

const PROGRAMS: [&str; 2] = ["processor-svc", "cdc-relay"];

/// Compiles all but the programs themselves, while nobody else wants the processors. The stack under test goes on
/// starting programs without failpoints.
///
/// # Errors
/// When it does not compile.
pub fn prepare(layout: &Layout) -> Result<()> {
    build(layout, &["--lib"], Priority::Idle)
}

/// Runs them. The programs take the place of those without failpoints, which the last line puts back without compiling
/// (cargo keeps both), so that nobody runs the other.
pub fn run(layout: &Layout, suites: &[Suite], totals: &mut Totals) {
    let targets: Vec<&str> = PROGRAMS.iter().flat_map(|program| ["--bin", program]).collect();
    totals.all(build(layout, &targets, Priority::Normal).and_then(|()| {
        let of_programs = |suite: &&Suite| PROGRAMS.contains(&suite.package.as_str());
        let lane = |suite: &Suite| suites::runs(vec![suite.clone()], &["--ignored", ENDS]);
        suites::run(layout, suites.iter().filter(of_programs).map(lane).collect(), Priority::Normal)
    }));
    totals.one(cargo(layout, &["build", "--release", "--workspace", "--quiet"]));
}

fn build(layout: &Layout, targets: &[&str], priority: Priority) -> Result<()> {
    let arguments: Vec<&str> = ["--features", FAILPOINTS].iter().chain(targets).copied().collect();
    Progress::default().step("failpoints", |step| {
        workspace::build_with(layout, &arguments, priority, step).map(|()| String::new())
    })
}
