//! `cargo stack drill NAME`: breaks one thing of a running stack, as it breaks in earnest, and mends it by the runbook.
//!
//! * A drill passes when its alert fires within the listed time, the `sh` blocks of its runbook's section end it, every
//!   accepted payment ends, and the audit finds nothing.
//! * Rules and their times are those of production: a drill waits as long as its alert does.
//! * Whatever happens, it leaves the stack as it found it.
//! * Planned changes come first: they may page nobody, so they wait until the pages of what was broken before have ended.
//! * [`DRILLS`] lists them. [`harness`] is what they have in common; each has a module of its own.

pub mod alerts;
pub mod arrivals;
mod gateway_down;
pub mod harness;
mod keys;
mod pages;
mod poison;
mod relay_down;
pub mod report;
mod restore;
mod rotate;
pub mod runbook;
pub mod scale;
pub mod script;
mod slot_filling;
mod stuck_charge;
mod upgrade;
pub mod view;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use coroctl::stack::Stack;
use stack::environment;
use stack::layout::Layout;

use crate::chaos;
use crate::chaos::operator::Operator;
use harness::Harness;
use report::Report;
use restore::Loss;
use view::View;

#[derive(clap::Args)]
pub struct Options {
    /// The thing that is broken.
    #[arg(value_enum, required_unless_present = "all")]
    name: Option<Name>,
    /// One after the other; the next one also where one failed.
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Print each report as JSON.
    #[arg(long)]
    json: bool,
    /// `upgrade`: the folder of the new programs, such as the target/release of another revision. Without it each process is
    /// replaced by the same program.
    #[arg(long, env = "RELEASE", value_name = "FOLDER")]
    release: Option<PathBuf>,
    #[command(flatten)]
    loss: Loss,
}

/// A drill, and how it is played.
#[derive(Clone, Debug)]
pub struct Play {
    pub name: Name,
    /// Of `upgrade`.
    pub release: Option<PathBuf>,
    /// Of `restore`.
    pub loss: Loss,
}

impl Options {
    /// Each drill that is to be played, in order. Of all of them `restore` is played in each of its ways.
    fn plays(&self) -> Vec<Play> {
        let Options { release, loss, .. } = self;
        let play = |name, loss: &Loss| Play { name, release: release.clone(), loss: loss.clone() };
        if let Some(name) = self.name {
            return vec![play(name, loss)];
        }
        let ways = |name| if name == Name::Restore { Loss::all() } else { vec![loss.clone()] };
        DRILLS
            .iter()
            .flat_map(|drill| ways(drill.name).into_iter().map(move |loss| (drill.name, loss)))
            .map(|(name, loss)| play(name, &loss))
            .collect()
    }
}

impl Play {
    /// As a person names it.
    pub fn title(&self) -> String {
        match self.name {
            Name::Restore => format!("{} {}", self.name.title(), self.loss),
            name => name.title(),
        }
    }
}

/// The drills, in the order of `--all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Migrations, and each process is replaced, by the programs in the folder RELEASE if there is one.
    Upgrade,
    /// Every login gets another secret.
    Rotate,
    /// Services get further instances, and lose them again.
    Scale,
    /// Somebody produces a record that nobody can read.
    Poison,
    /// The relay is stopped, and stays down.
    RelayDown,
    /// RabbitMQ is away while WAL is written: a slot of the relay would soon be lost.
    SlotFilling,
    /// The gateway answers 503 to everybody.
    GatewayDown,
    /// The gateway charges a payment, and never says so.
    StuckCharge,
    /// Databases are lost, and come back without the last payments: from dumps, a base backup, or a standby.
    Restore,
}

impl Name {
    /// As it is written on the command line.
    pub fn title(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// A drill, and what it has to show.
pub struct Drill {
    pub name: Name,
    pub alert: Option<ListedAlert>,
    /// The page of the runbook whose blocks end it, and the heading of the section.
    pub page: &'static str,
    pub section: &'static str,
    /// Requests of clients fail meanwhile, as documented. Otherwise not one may.
    pub requests_may_fail: bool,
}

impl Drill {
    /// The time between two payments of the load: five a second are enough for every alert that needs a share of bad ones,
    /// and more come where the load is what the drill is about.
    pub fn load_interval(&self) -> Duration {
        match self.name {
            Name::Scale => Duration::from_millis(40),
            Name::Upgrade
            | Name::Rotate
            | Name::Poison
            | Name::RelayDown
            | Name::SlotFilling
            | Name::GatewayDown
            | Name::StuckCharge
            | Name::Restore => Duration::from_millis(200),
        }
    }
}

/// An alert, and the time within which it has to fire once the thing is broken.
pub struct ListedAlert {
    pub name: &'static str,
    pub within: Duration,
}

const fn alert(name: &'static str, seconds: u64) -> Option<ListedAlert> {
    Some(ListedAlert { name, within: Duration::from_secs(seconds) })
}

/// Each drill with its alert, the seconds within which that has to fire, and the section that ends it. The seconds are those of
/// the rule, of a scrape (5) and a look (15) of Prometheus, and of the way to the rule's condition.
pub const DRILLS: &[Drill] = &[
    Drill {
        name: Name::Upgrade,
        alert: None,
        page: "upgrade.md",
        section: "Steps",
        requests_may_fail: false,
    },
    Drill {
        name: Name::Rotate,
        alert: None,
        page: "rotation.md",
        section: "Steps",
        requests_may_fail: false,
    },
    Drill { name: Name::Scale, alert: None, page: "scaling.md", section: "Steps", requests_may_fail: false },
    Drill {
        name: Name::Poison,
        alert: alert("CoroParked", 60),
        page: "saga.md",
        section: "CoroParked",
        requests_may_fail: false,
    },
    Drill {
        name: Name::RelayDown,
        alert: alert("CdcRelayDown", 100),
        page: "cdc-relay.md",
        section: "CdcRelayDown",
        // New payments are refused once those before them have waited for their holds too long.
        requests_may_fail: true,
    },
    Drill {
        name: Name::SlotFilling,
        alert: alert("CdcRelaySlotInvalidMinutes", 240),
        page: "cdc-relay.md",
        section: "CdcRelaySlotInvalidMinutes",
        requests_may_fail: false,
    },
    Drill {
        name: Name::GatewayDown,
        alert: alert("CoroBreakerOpen", 360),
        page: "saga.md",
        section: "CoroBreakerOpen",
        requests_may_fail: false,
    },
    Drill {
        name: Name::StuckCharge,
        alert: alert("CoroChargesUnknown", 780),
        page: "saga.md",
        section: "CoroChargesUnknown",
        requests_may_fail: false,
    },
    Drill {
        name: Name::Restore,
        alert: alert("CdcRelayRefused", 150),
        page: "restore.md",
        section: "Recover, and open",
        // While a database is away or closed, requests are answered 503.
        requests_may_fail: true,
    },
];

/// Runs the drill, or all of them, prints the reports, and fails on whatever was missed.
///
/// # Errors
/// As it says; and when the stack is not up.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let plays = options.plays();
    if let [play] = plays.as_slice() {
        return run_one(stack, play, options.json).await;
    }
    let mut failed = Vec::new();
    for play in &plays {
        eprintln!("\n{}", play.title());
        // A drill may have changed every secret.
        let played = async { run_one(&present()?, play, options.json).await };
        if let Err(error) = played.await {
            eprintln!("{error:#}");
            failed.push(play.title());
        }
    }
    ensure!(failed.is_empty(), "these drills failed: {}", failed.join(", "));
    Ok(())
}

async fn run_one(stack: &Stack, play: &Play, json: bool) -> Result<()> {
    let report = report(stack, play, View::on_stderr()).await?;
    report.print(json)?;
    report.verdict()
}

/// The stack with its secrets as they are now, which may be others than those that this process was started with.
fn present() -> Result<Stack> {
    let variables = environment::variables(&Layout::from_env()?)?;
    Stack::read(|name| Ok(variables.get(name).cloned()))
}

/// Runs the drill to its end.
///
/// # Errors
/// When it could not be carried out.
pub async fn report(stack: &Stack, play: &Play, view: View) -> Result<Report> {
    let drill = DRILLS.iter().find(|drill| drill.name == play.name).context("a drill that is not listed")?;
    let operator = Operator::new(&chaos::view::View::silent()).await?;
    let mut harness = Harness::begin(stack, drill, view).await?;
    let played = tokio::select! {
        played = carry_out(&mut harness, play) => Some(played),
        _ = tokio::signal::ctrl_c() => None,
    };
    // Both, also if one of them fails.
    let mended = (undo(&harness.stack, play.name).await, operator.heal().await);
    let mended = mended.0.and(mended.1);
    let Some(played) = played else {
        mended?;
        bail!("interrupted; the stack runs as before")
    };
    harness.finish(&play.title(), played.and(mended)).await
}

async fn carry_out(harness: &mut Harness, play: &Play) -> Result<()> {
    match play.name {
        Name::Poison => poison::play(harness).await,
        Name::RelayDown => relay_down::play(harness).await,
        Name::SlotFilling => slot_filling::play(harness).await,
        Name::GatewayDown => gateway_down::play(harness).await,
        Name::StuckCharge => stuck_charge::play(harness).await,
        Name::Upgrade => upgrade::play(harness, play.release.as_deref()).await,
        Name::Restore => restore::play(harness, &play.loss).await,
        Name::Rotate => rotate::play(harness).await,
        Name::Scale => scale::play(harness).await,
    }
}

/// Takes back what the runbook did not, however the drill ended. Whatever does not run is started again beside this.
async fn undo(stack: &Stack, name: Name) -> Result<()> {
    match name {
        Name::SlotFilling => slot_filling::undo(stack).await,
        Name::GatewayDown => gateway_down::undo(stack).await,
        Name::Upgrade => upgrade::undo(stack).await,
        Name::Restore => restore::undo(stack).await,
        Name::Scale => scale::undo().await,
        Name::Poison | Name::RelayDown | Name::StuckCharge | Name::Rotate => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The text of an alert's rule.
    fn rule(alert: &str) -> Option<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/prometheus/rules");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let texts = files.map(|file| std::fs::read_to_string(file).unwrap());
        let rules =
            texts.flat_map(|text| text.split("- alert: ").skip(1).map(str::to_owned).collect::<Vec<_>>());
        rules.into_iter().find(|rule| rule.lines().next() == Some(alert))
    }

    /// The time for which its condition has to hold, in seconds.
    fn holds_for(rule: &str) -> u64 {
        let Some(time) = rule.lines().find_map(|line| line.trim_start().strip_prefix("for: ")) else {
            return 0;
        };
        let (number, unit) = time.split_at(time.len() - 1);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            unit => panic!("for: {number}{unit}"),
        };
        number.parse::<u64>().unwrap() * seconds
    }

    #[test]
    fn every_drill_is_listed_once() {
        let listed: Vec<Name> = DRILLS.iter().map(|drill| drill.name).collect();
        assert_eq!(listed, Name::value_variants());
    }

    #[test]
    fn planned_changes_come_before_what_pages_and_all_drills_lose_databases_in_every_way() {
        let pages = DRILLS.iter().position(|drill| drill.alert.is_some()).unwrap();
        assert!(DRILLS[pages..].iter().all(|drill| drill.alert.is_some()));
        let options = Options { name: None, all: true, json: false, release: None, loss: Loss::default() };
        let titles: Vec<String> = options.plays().iter().map(Play::title).collect();
        assert_eq!(titles[..3], ["upgrade", "rotate", "scale"]);
        assert_eq!(
            titles[titles.len() - 4..],
            [
                "restore --from dump",
                "restore --from dump --databases balance,payments",
                "restore --from base-backup",
                "restore --from promotion"
            ]
        );
        let one = Options { name: Some(Name::Restore), ..options };
        assert_eq!(one.plays().iter().map(Play::title).collect::<Vec<_>>(), ["restore --from dump"]);
    }

    #[test]
    fn the_alert_of_a_drill_is_a_rule_that_can_fire_in_the_listed_time() {
        let mut alerts = 0;
        for listed in DRILLS.iter().filter_map(|drill| drill.alert.as_ref()) {
            let rule = rule(listed.name).unwrap_or_else(|| panic!("no rule {}", listed.name));
            assert!(listed.within.as_secs() > holds_for(&rule), "{}", listed.name);
            alerts += 1;
        }
        assert!(alerts >= 5, "{alerts}");
    }

    #[test]
    fn the_section_of_a_drill_has_scripts() {
        for Drill { name, page, section, .. } in DRILLS {
            let found = runbook::section(page, section).unwrap();
            assert!(!found.acts.is_empty(), "{name:?}: {page}, {section}, has nothing to run");
        }
    }

    #[test]
    fn the_first_page_of_the_runbooks_lists_every_drill_with_its_alert_and_time() {
        let first = std::fs::read_to_string(runbook::folder().join("README.md")).unwrap();
        for Drill { name, alert, page, .. } in DRILLS {
            let alert = alert.as_ref().map_or("none, all along".to_owned(), |listed| {
                format!("`{}` within {} s", listed.name, listed.within.as_secs())
            });
            let line = format!("| `{}` |", name.title());
            let line =
                first.lines().find(|found| found.starts_with(&line)).unwrap_or_else(|| panic!("{line}"));
            for part in [alert, format!("]({page}")] {
                assert!(line.contains(&part), "{line}: no {part}");
            }
        }
    }
}
