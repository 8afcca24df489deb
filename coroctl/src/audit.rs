//! Does everything add up? Each check is one promise about everything there is, with what breaks it.
//!
//! The names are those of docs/AUDIT.md. Most hold in every moment, also in the middle of a
//! load; those marked `at_rest` only when no payment is under way, so it is waited for that first.
//!
//! * [`places`]: where to look. [`seen`]: what was seen there: [`rows`] and [`money`] in the databases, [`told`] on
//!   Kafka (read by [`hear`]), [`gateway`] at the gateway, [`relay`] of its slots. [`rest`]: when to look.
//! * [`money`], [`gateway`], [`saga`], [`transport`], [`chain`], [`reconcile`]: the checks, over what was seen.
//! * [`report`]: how it is said. [`command`]: `cargo stack audit`.

pub mod chain;
pub mod command;
pub mod edges;
pub mod finding;
pub mod gateway;
pub mod hear;
pub mod money;
pub mod places;
pub mod reconcile;
pub mod relay;
pub mod report;
pub mod rest;
pub mod rows;
pub mod saga;
pub mod seen;
pub mod told;
pub mod transport;
pub mod words;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use uuid::Uuid;

pub use self::finding::Finding;
use self::finding::Tally;
use self::places::{Part, Places};
use self::seen::{Links, Seen};
use crate::stack::Stack;

/// How to look, and what is known already.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only what holds in every moment: for a system under load.
    pub live: bool,
    /// How long to wait for everything to come to rest, before what holds only then is asked.
    pub settle: Duration,
    /// `parked_id`s, and dead letters and foreign records as topic/partition/offset, that somebody has looked into.
    pub explained: BTreeSet<String>,
    /// Payments that callers were answered 201 for.
    pub accepted: Vec<Uuid>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            live: false,
            settle: Duration::from_secs(60),
            explained: BTreeSet::new(),
            accepted: Vec::new(),
        }
    }
}

/// A promise, and how it is looked at.
pub struct Check {
    pub name: &'static str,
    pub promise: &'static str,
    /// Holds only when nothing moves.
    pub at_rest: bool,
    needs: &'static [Part],
    look: fn(&Seen) -> Tally,
}

const fn always(
    name: &'static str,
    promise: &'static str,
    needs: &'static [Part],
    look: fn(&Seen) -> Tally,
) -> Check {
    Check { name, promise, at_rest: false, needs, look }
}

const fn at_rest(
    name: &'static str,
    promise: &'static str,
    needs: &'static [Part],
    look: fn(&Seen) -> Tally,
) -> Check {
    Check { name, promise, at_rest: true, needs, look }
}

const BALANCE: &[Part] = &[Part::Balance];
const PAYMENTS: &[Part] = &[Part::Payments];
const DATABASES: &[Part] = &[Part::Payments, Part::Balance, Part::Processor];
const WITH_KAFKA: &[Part] = &[Part::Payments, Part::Balance, Part::Processor, Part::Kafka];
const ENDS_PAID: &[Part] = &[Part::Payments, Part::Gateway];
const INTENTS: &[Part] = &[Part::Processor, Part::Gateway];
const PATHS: &[Part] = &[Part::Payments, Part::Kafka];
const KAFKA: &[Part] = &[Part::Kafka];
const WITH_GATEWAY: &[Part] = &[Part::Payments, Part::Balance, Part::Processor, Part::Gateway];

/// Every check, in the order of the report.
pub const CHECKS: &[Check] = &[
    always("M1", "deposits = available + held + captured", BALANCE, |seen| seen.money.total.clone()),
    always("M2", "no balance below zero", BALANCE, |seen| seen.money.positive.clone()),
    always("M3", "accounts are the fold of the ledger", BALANCE, |seen| seen.money.fold.clone()),
    at_rest("M4", "no hold without a live payment", &[Part::Payments, Part::Balance], saga::held_for),
    always("M5", "a hold is captured or released, once, by its amount", BALANCE, |seen| {
        seen.money.once.clone()
    }),
    always("M6", "payment, ledger and charge say the same", DATABASES, saga::same),
    always("G1", "completed: charged once, that amount", ENDS_PAID, gateway::completed),
    always("G2", "failed, rejected, cancelled: not charged", ENDS_PAID, gateway::unpaid),
    always("G3", "no charge without a committed intent", INTENTS, gateway::intended),
    always("G4", "unpaid only on a definite answer", DATABASES, gateway::definite),
    at_rest("R", "payments, ledger and gateway ledger agree", WITH_GATEWAY, reconcile::agree),
    at_rest("S1", "every accepted payment has ended", PAYMENTS, saga::ended),
    always("S2", "only legal steps, versions without gaps", PATHS, saga::legal),
    always("S3", "one payment per user and key", PAYMENTS, |seen| seen.payments.keys.clone()),
    always("S4", "what was accepted is there", PATHS, saga::kept),
    at_rest("T1", "every committed change is on Kafka", WITH_KAFKA, transport::told),
    at_rest("T1 chain", "each event names the commit before it", KAFKA, |seen| seen.told.chains.judge()),
    always("T2", "first told in commit order, by user", KAFKA, |seen| seen.told.order.clone()),
    always("T3", "only what was committed is told", WITH_KAFKA, transport::committed),
    always("T4", "no slot ahead of the acknowledged", WITH_KAFKA, transport::acknowledged),
    always("T5", "one effect per event", DATABASES, transport::once),
    at_rest("T6 queue", "the work queue is empty", &[Part::Queue], transport::queue),
    at_rest("T6 lag", "every group has applied all", KAFKA, transport::lag),
    always("T6 parked", "nothing set aside unexplained", WITH_KAFKA, transport::set_aside),
];

/// Looks at a whole stack: every check, as a read-only role and from the gateway's export; changes nothing.
pub async fn run(stack: &Stack) -> Result<Vec<Finding>> {
    run_with(stack, &Options::default()).await
}

/// The same, by what is known already.
pub async fn run_with(stack: &Stack, options: &Options) -> Result<Vec<Finding>> {
    Ok(look(&Places::from(stack), options).await?.0)
}

/// Looks at whatever is to be found at `places`; the notes say what the reader should know besides.
///
/// # Errors
/// When a place that was given cannot be looked at.
pub async fn look(places: &Places, options: &Options) -> Result<(Vec<Finding>, Vec<String>)> {
    let mut links = Links::connect(places).await?;
    let began = Instant::now();
    loop {
        let left = options.settle.saturating_sub(began.elapsed());
        let rest = if options.live { None } else { Some(rest::settle(places, &links, left).await?) };
        let seen = Seen::look(places, &mut links, options).await?;
        let moved = match &rest {
            Some(rest) => !rest::has_stayed(places, &links, rest).await?,
            None => false,
        };
        if moved && began.elapsed() < options.settle {
            continue;
        }
        let unrest = match rest {
            Some(motion) if !motion.is_still() => Some(format!("It did not come to rest: {motion}.")),
            Some(_) if moved => Some("It did not stay at rest while it was looked at.".to_owned()),
            Some(_) | None => None,
        };
        let warning =
            |unrest| format!("{unrest} What holds only at rest may not hold yet: see --settle, --live.");
        let notes = unrest.map(warning).into_iter().collect();
        return Ok((judge(&seen, places, options.live), notes));
    }
}

/// Every check over what was seen.
pub fn judge(seen: &Seen, places: &Places, live: bool) -> Vec<Finding> {
    let finding = |check: &Check| {
        let missing: Vec<&str> = check
            .needs
            .iter()
            .filter(|part| places.of(**part).is_none())
            .map(|part| part.variable())
            .collect();
        let skipped = if !missing.is_empty() {
            Some(format!("{} is not given", missing.join(", ")))
        } else if live && check.at_rest {
            Some("holds only at rest (--live)".to_owned())
        } else {
            None
        };
        let tally = if skipped.is_none() { (check.look)(seen) } else { Tally::default() };
        Finding { skipped, ..tally.finding(check.name, check.promise) }
    };
    CHECKS.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_check_and_no_other() {
        let path = format!("{}/../docs/AUDIT.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let table = text.as_str();
        let listed = table.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
        let listed: Vec<&str> = listed.map(|(name, _)| name).skip(1).collect();
        let star = |check: &Check| if check.at_rest { "*" } else { "" };
        let checks: Vec<String> =
            CHECKS.iter().map(|check| format!("{}{}", check.name, star(check))).collect();
        assert_eq!(listed, checks);
        for Check { promise, .. } in CHECKS {
            assert!(table.contains(&format!("| {promise} |")), "{promise}");
        }
    }
}
