//! Audits a running Coro: each check is one promise about everything there is.
//!
//! * Names, promises and what each check compares: docs/AUDIT.md.
//! * Most checks hold in every moment, also in the middle of a load. Those that are `when_quiescent` hold only while no
//!   payment is under way, so the audit waits for that first.
//! * It reads only, as a role that may only read.
//!
//! [`targets`] and [`connections`]: the addresses. [`read`]: reads from each, into [`observed`]. [`checks`]: pure
//! functions of what was observed. [`quiescence`]: the wait. [`report`] and [`command`]: `coroctl audit`.

pub mod checks;
pub mod command;
pub mod connections;
pub mod finding;
pub mod observed;
pub mod quiescence;
pub mod read;
pub mod report;
pub mod statuses;
pub mod targets;
pub mod transitions;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use uuid::Uuid;

use self::checks::{chain, derived, gateway, money, ownership, reconcile, saga, transport};
use self::connections::Connections;
pub use self::finding::Finding;
use self::finding::Tally;
use self::observed::Observed;
use self::targets::{Target, Targets};
use crate::stack::Stack;

/// The extent of an audit, and what is known already.
#[derive(Clone, Debug)]
pub struct Options {
    /// Make only the checks that hold in every moment: for a system under load.
    pub live: bool,
    /// How long to wait for quiescence, before the checks that need it.
    pub wait: Duration,
    /// `parked_id`s, and dead letters and foreign records as topic/partition/offset, that somebody has explained.
    pub explained: BTreeSet<String>,
    /// Payments that callers were answered 201 for.
    pub accepted: Vec<Uuid>,
}

impl Default for Options {
    fn default() -> Self {
        Self { live: false, wait: Duration::from_secs(60), explained: BTreeSet::new(), accepted: Vec::new() }
    }
}

/// A promise, and the function that checks it.
pub struct Check {
    pub name: &'static str,
    pub promise: &'static str,
    /// Holds only while no payment is under way.
    pub when_quiescent: bool,
    /// Is made only where some service has several databases.
    pub of_shards: bool,
    needs: &'static [Target],
    check: fn(&Observed) -> Tally,
}

const fn always(
    name: &'static str,
    promise: &'static str,
    needs: &'static [Target],
    check: fn(&Observed) -> Tally,
) -> Check {
    Check { name, promise, when_quiescent: false, of_shards: false, needs, check }
}

const fn when_quiescent(
    name: &'static str,
    promise: &'static str,
    needs: &'static [Target],
    check: fn(&Observed) -> Tally,
) -> Check {
    Check { name, promise, when_quiescent: true, of_shards: false, needs, check }
}

const fn of_shards(name: &'static str, promise: &'static str, check: fn(&Observed) -> Tally) -> Check {
    Check { name, promise, when_quiescent: false, of_shards: true, needs: &[], check }
}

const BALANCE: &[Target] = &[Target::Balance];
const PAYMENTS: &[Target] = &[Target::Payments];
const DATABASES: &[Target] = &[Target::Payments, Target::Balance, Target::Processor];
const WITH_KAFKA: &[Target] = &[Target::Payments, Target::Balance, Target::Processor, Target::Kafka];
const WITH_BALANCE: &[Target] = &[Target::Payments, Target::Balance];
const PAYMENTS_GATEWAY: &[Target] = &[Target::Payments, Target::Gateway];
const PROCESSOR_GATEWAY: &[Target] = &[Target::Processor, Target::Gateway];
const PAYMENTS_KAFKA: &[Target] = &[Target::Payments, Target::Kafka];
const PROCESSOR_KAFKA: &[Target] = &[Target::Payments, Target::Processor, Target::Kafka];
const PAYMENTS_SEARCH: &[Target] = &[Target::Payments, Target::Search];
const PAYMENTS_NOTIFIER: &[Target] = &[Target::Payments, Target::Notifier];
const KAFKA: &[Target] = &[Target::Kafka];
const QUEUE: &[Target] = &[Target::Queue];
const WITH_GATEWAY: &[Target] = &[Target::Payments, Target::Balance, Target::Processor, Target::Gateway];

/// Every check, in the order of the report.
pub const CHECKS: &[Check] = &[
    always("M1", "deposits = available + held + captured", BALANCE, money::total),
    always("M2", "no balance below zero", BALANCE, money::positive),
    always("M3", "accounts are the fold of the ledger", BALANCE, money::fold),
    when_quiescent("M4", "no hold without a live payment", WITH_BALANCE, saga::hold_has_payment),
    always("M5", "a hold is captured or released, once, by its amount", BALANCE, money::once),
    always("M6", "payment, ledger and charge name the same terms", DATABASES, saga::same_terms),
    always("M7", "each movement has its number and the balances after", BALANCE, money::statement),
    always("G1", "completed: charged once, that amount", PAYMENTS_GATEWAY, gateway::completed),
    always("G2", "failed, rejected, cancelled: not charged", PAYMENTS_GATEWAY, gateway::unpaid),
    always("G3", "no charge without a committed intent", PROCESSOR_GATEWAY, gateway::intended),
    always("G4", "unpaid only on a definite answer", DATABASES, gateway::definite),
    when_quiescent("R", "payments, ledger and gateway ledger agree", WITH_GATEWAY, reconcile::agree),
    when_quiescent("S1", "every accepted payment has ended", PAYMENTS, saga::has_ended),
    always("S2", "only legal transitions, versions without gaps", PROCESSOR_KAFKA, saga::legal_transitions),
    always("S3", "one payment per user and key", PAYMENTS, saga::unique_key),
    always("S4", "every accepted payment has a row", PAYMENTS_KAFKA, saga::has_row),
    when_quiescent("T1", "every committed change is on Kafka", WITH_KAFKA, transport::emitted),
    when_quiescent("T1 chain", "each event names the commit before it", KAFKA, chain::unbroken),
    always("T2", "first emitted in commit order, by user", KAFKA, transport::commit_order),
    always("T3", "only committed changes are emitted", WITH_KAFKA, transport::committed),
    always("T4", "no slot ahead of the acknowledged position", WITH_KAFKA, transport::acknowledged),
    always("T5", "one effect per event", DATABASES, transport::once),
    when_quiescent("T6 queue", "the work queue is empty", QUEUE, transport::queue),
    when_quiescent("T6 lag", "every group has applied every record", KAFKA, transport::lag),
    always("T6 parked", "nothing parked or dead-lettered unexplained", WITH_KAFKA, transport::all_explained),
    when_quiescent("D1", "search = payments", PAYMENTS_SEARCH, derived::search),
    when_quiescent("D2", "one notification per end and channel", PAYMENTS_NOTIFIER, derived::notifications),
    of_shards("O1", "each bucket has one owner", ownership::one_owner),
];

/// Audits a whole stack with the default options.
///
/// # Errors
/// As [`check`].
pub async fn run(stack: &Stack) -> Result<Vec<Finding>> {
    run_with(stack, &Options::default()).await
}

/// Audits a whole stack.
///
/// # Errors
/// As [`check`].
pub async fn run_with(stack: &Stack, options: &Options) -> Result<Vec<Finding>> {
    Ok(check(&Targets::from(stack), options).await?.0)
}

/// Makes every check whose targets have an address; the notes say what the reader should know besides.
///
/// # Errors
/// When a target with an address cannot be read.
pub async fn check(targets: &Targets, options: &Options) -> Result<(Vec<Finding>, Vec<String>)> {
    let mut connections = Connections::connect(targets).await?;
    let began = Instant::now();
    loop {
        let left = options.wait.saturating_sub(began.elapsed());
        let in_flight = match options.live {
            true => None,
            false => Some(quiescence::wait(targets, &connections, left).await?),
        };
        let observed = Observed::read(targets, &mut connections, options).await?;
        let moved = match &in_flight {
            Some(in_flight) => !quiescence::persists(targets, &connections, in_flight).await?,
            None => false,
        };
        if moved && began.elapsed() < options.wait {
            continue;
        }
        let why = match in_flight {
            Some(in_flight) if !in_flight.is_empty() => Some(format!("Payments are under way: {in_flight}.")),
            Some(_) if moved => Some("New payments came while it read.".to_owned()),
            Some(_) | None => None,
        };
        let warning =
            |why| format!("{why} Checks that need quiescence may fail for that reason: see --wait, --live.");
        let notes = why.map(warning).into_iter().chain(observed.notes()).collect();
        return Ok((judge(&observed, targets, options.live), notes));
    }
}

/// Makes every check on what was observed.
pub fn judge(observed: &Observed, targets: &Targets, live: bool) -> Vec<Finding> {
    let finding = |check: &Check| {
        let missing: Vec<&str> = check
            .needs
            .iter()
            .filter(|target| targets.address(**target).is_none())
            .map(|target| target.variable())
            .collect();
        let skipped = if !missing.is_empty() {
            Some(format!("{} is not given", missing.join(", ")))
        } else if live && check.when_quiescent {
            Some("needs quiescence (--live)".to_owned())
        } else {
            None
        };
        let tally = if skipped.is_none() { (check.check)(observed) } else { Tally::default() };
        let mut finding = Finding { skipped, ..tally.finding(check.name, check.promise) };
        let location = finding.payment_id.and_then(|id| observed.location(id));
        if let (Some(first), Some(location)) = (&mut finding.first, location) {
            first.push_str(&format!(" ({location})"));
        }
        finding
    };
    let has_shards = !observed.databases.ownership.is_empty();
    CHECKS.iter().filter(|check| has_shards || !check.of_shards).map(finding).collect()
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
        let star = |check: &Check| if check.when_quiescent { "*" } else { "" };
        let checks: Vec<String> =
            CHECKS.iter().map(|check| format!("{}{}", check.name, star(check))).collect();
        assert_eq!(listed, checks);
        for Check { promise, .. } in CHECKS {
            assert!(table.contains(&format!("| {promise} |")), "{promise}");
        }
    }
}
