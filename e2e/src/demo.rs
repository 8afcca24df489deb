//! `cargo stack demo`: 200 payments while Postgres, the relay and the processor are killed under them.

use std::time::Duration;

use anyhow::Result;

use crate::chaos::faults::{Fault, FaultKind};
use crate::chaos::plan::{Mix, Plan};
use crate::chaos::view::View;
use crate::chaos::{Run, play};
use coroctl::stack::Stack;

const PLAN: Plan = Plan { seed: 1, payments: 200, users: 20, mix: Mix::DEMO };
const RATE: f64 = 10.0;
const INTRODUCTION: &str = "
  200 payments, ten a second. Postgres, the relay and the processor are killed in the middle of them.
  Calls the processor has under way are unknown when it dies: nobody asks again before their lease
  of 30 seconds ends.
";
/// How long Postgres is left dead.
const OUTAGE: Duration = Duration::from_secs(4);

/// Runs, prints, and fails on any deviation.
pub async fn run(stack: &Stack) -> Result<()> {
    eprintln!("{INTRODUCTION}");
    let view = View::of(PLAN.payments);
    let fault =
        |after, target: &str, kind| Fault { after, delay: Duration::ZERO, target: target.to_owned(), kind };
    let run = Run {
        plan: PLAN,
        rate: RATE,
        kills: vec![fault(120, "cdc-relay", FaultKind::Kill), fault(160, "processor-svc", FaultKind::Kill)],
        outages: vec![fault(40, "postgres", FaultKind::Crash(OUTAGE))],
    };
    let report = play(stack, &run, &view).await?;
    report.print();
    saga::say!("\n{}", report.verdict()?);
    Ok(())
}
