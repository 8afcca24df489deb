//! `payments-svc recover`: makes the payments again that a restored database lacks, and opens the database.
//!
//! * PaymentTopic has every version of a payment that was emitted. What the database lacks of them is written again, to the bytes
//!   of the event ([`plan`]).
//! * What was parked, and what operators did with it, is put back first, so that nothing is parked as if for the first time.
//! * Transitions that were committed and not emitted are made anew, from the ledger's events and from unknown outcomes.
//! * Changes of services that the backup lacks are named ([`services`]).
//! * A client that repeats its request gets its payment, though no event has its key ([`crate::request`]).
//! * A dry run is one transaction that is rolled back.

pub mod plan;
mod services;

use std::fmt;

use anyhow::Context;
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, Payment};
use saga::recovery::{Emitted, Overlap, Progress, Recovery, Settings};
use saga::shards::Router;

use self::plan::{Outdated, Plan, Refused};
use crate::events::Payments;
use crate::metrics::Metrics;
use crate::{SERVICE, store};

/// The events of PaymentTopic, by what the database had of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    lacking: usize,
    outdated: usize,
    present: usize,
    refused: usize,
}

impl Counts {
    fn add(&mut self, plan: &Plan) {
        self.lacking += plan.lacking.len();
        self.outdated += plan.outdated.len();
        self.present += plan.present;
        self.refused += plan.refused.len();
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, outdated, present, refused } = self;
        write!(f, "{lacking} lacking, {outdated} outdated, {present} events there, {refused} refused")
    }
}

/// Recovers the database and opens it.
///
/// # Errors
/// When there are findings, or a server failed. It may be run again.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut recovery = Recovery::begin(settings, SERVICE).await?;
    services::compare(&mut recovery).await?;
    recovery.parked(&[BALANCE_TOPIC, PAYMENT_RESULT_TOPIC]).await?;
    let router = Router::one(recovery.pool().clone());
    rows(&mut recovery, &router).await?;
    let payments = Payments::new(router, &Metrics::register()?);
    // An unknown outcome is recorded after the hold.
    for topic in [BALANCE_TOPIC, PAYMENT_RESULT_TOPIC] {
        recovery.apply(&payments, topic).await?;
    }
    recovery.finish().await
}

/// Writes what the database lacks of PaymentTopic, each batch in a transaction.
async fn rows(recovery: &mut Recovery, router: &Router) -> anyhow::Result<()> {
    let mut batches =
        recovery.topic(PAYMENT_TOPIC).read(|record| Emitted::read(record, "event of a payment"))?;
    let (mut counts, mut progress, mut overlap) =
        (Counts::default(), Progress::default(), Overlap::default());
    let mut client = recovery.client().await?;
    let mut transaction = client.transaction().await.context("cannot begin a transaction")?;
    while let Some(batch) = batches.next().await? {
        let batch: Vec<Emitted<Payment>> = recovery.readable(batch);
        let (owned, batch) = recovery.own(router, batch, |emitted| emitted.body.user_id).await?;
        let plan = store::recover(&transaction, &owned, &batch).await?;
        for (emitted, is_lacking) in batch.iter().zip(&plan.is_lacking) {
            recovery.check_overlap(&mut overlap, emitted, *is_lacking)?;
        }
        counts.add(&plan);
        if recovery.is_dry_run() {
            print(&plan);
        } else {
            transaction.commit().await.context("cannot commit")?;
            transaction = client.transaction().await.context("cannot begin a transaction")?;
        }
        for Refused { payment_id, place, why } in plan.refused {
            recovery.report(format_args!("{place}: payment {payment_id}: {why}"));
        }
        progress.print(&format_args!("{PAYMENT_TOPIC}: {counts}"));
    }
    saga::say!("{PAYMENT_TOPIC}: {counts}");
    Ok(())
}

/// Names each payment that is not there, or is older than its events.
fn print(plan: &Plan) {
    for payment in &plan.lacking {
        saga::say!("lacking: payment {}, version {} {}", payment.payment_id, payment.version, payment.event);
    }
    for Outdated { from_version, payment } in &plan.outdated {
        let Payment { payment_id, version, event, .. } = payment;
        saga::say!("outdated: payment {payment_id} has version {from_version}, its event {version} {event}");
    }
}
