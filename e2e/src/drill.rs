//! `cargo stack drill NAME`: breaks one thing of a running stack, as it breaks in earnest, and mends it by the runbook.
//!
//! * A drill passes when its alert fires within the listed time, the `sh` blocks of its runbook's section end it, every
//!   accepted payment ends, and the audit finds nothing.
//! * Rules and their times are those of production: a drill waits as long as its alert does.
//! * Whatever happens, it leaves the stack as it found it.
//! * [`DRILLS`] lists them. [`harness`] is what they have in common; each has a module of its own.
#![allow(clippy::print_stdout, reason = "the report is the output")]

pub mod alerts;
pub mod harness;
mod relay_down;
pub mod report;
pub mod runbook;
pub mod script;
pub mod view;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use coroctl::stack::Stack;

use crate::chaos;
use crate::chaos::operator::Operator;
use harness::Harness;
use report::Report;
use view::View;

#[derive(clap::Args)]
pub struct Options {
    /// The thing that is broken.
    #[arg(value_enum)]
    name: Name,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The relay is stopped, and stays down.
    RelayDown,
}

/// A drill, and what it has to show.
pub struct Drill {
    pub name: Name,
    /// The name as it is written on the command line.
    pub title: &'static str,
    pub alert: Option<ListedAlert>,
    /// The page of the runbook whose blocks end it, and the heading of the section.
    pub page: &'static str,
    pub section: &'static str,
    /// Requests of clients fail meanwhile, as documented. Otherwise not one may.
    pub requests_may_fail: bool,
}

/// An alert, and the time within which it has to fire once the thing is broken.
pub struct ListedAlert {
    pub name: &'static str,
    pub within: Duration,
}

const fn alert(name: &'static str, seconds: u64) -> Option<ListedAlert> {
    Some(ListedAlert { name, within: Duration::from_secs(seconds) })
}

pub const DRILLS: &[Drill] = &[Drill {
    name: Name::RelayDown,
    title: "relay-down",
    alert: alert("CdcRelayDown", 150),
    page: "cdc-relay.md",
    section: "CdcRelayDown",
    requests_may_fail: true,
}];

/// Runs the drill, prints the report, and fails on whatever was missed.
///
/// # Errors
/// As it says; and when the stack is not up.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let report = report(stack, options.name, View::new()).await?;
    report.print(options.json)?;
    report.verdict()
}

/// Runs the drill to its end.
///
/// # Errors
/// When it could not be carried out.
pub async fn report(stack: &Stack, name: Name, view: View) -> Result<Report> {
    let drill = DRILLS.iter().find(|drill| drill.name == name).context("a drill that is not listed")?;
    let operator = Operator::new(&chaos::view::View::silent()).await?;
    let mut harness = Harness::begin(stack, drill, view).await?;
    let played = tokio::select! {
        played = play(&mut harness) => played,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    operator.heal().await?;
    harness.finish(played).await
}

async fn play(harness: &mut Harness) -> Result<()> {
    match harness.name() {
        Name::RelayDown => relay_down::play(harness).await,
    }
}
