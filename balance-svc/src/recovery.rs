//! `balance-svc recover`: makes the entries again that a restored ledger lacks, and opens the database.
//!
//! * BalanceTopic has every entry that was emitted. What the ledger lacks of it is written again, to the bytes of the event
//!   ([`plan`]). Accounts follow from it.
//! * Entries that were committed and not emitted are made anew: results are applied first, since they set money free, then
//!   requests to pay.
//! * What was parked, and what operators did with it, is put back first, so that nothing is parked as if for the first time.
//! * A user with an entry that contradicts the ledger gets no later one: it is a finding, and the database stays closed.

pub mod plan;

use std::collections::HashSet;
use std::fmt;

use anyhow::Context;
use saga::contract::{BALANCE_TOPIC, LedgerEntry, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use saga::recovery::{Emitted, Overlap, Progress, Recovery, Settings};
use saga::shards::Router;

use crate::events::Ledger;
use crate::metrics::Metrics;
use crate::recovery::plan::{Lacking, Refused};
use crate::{SERVICE, store};

/// The entries of the topic, by what the ledger had of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    lacking: usize,
    present: usize,
    refused: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, present, refused } = self;
        write!(f, "{lacking} lacking, {present} there, {refused} refused")
    }
}

/// Recovers the database and opens it.
///
/// # Errors
/// When there are findings, or a server failed. It may be run again.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut recovery = Recovery::begin(settings, SERVICE).await?;
    recovery.parked(&[PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC]).await?;
    let router = Router::one(recovery.pool().clone());
    entries(&mut recovery, &router).await?;
    // Whose entry was refused has later ones on the topic. The events of others would make them anew, as other entries.
    if recovery.is_held_up() {
        return recovery.finish().await;
    }
    let ledger = Ledger::new(router, &Metrics::register()?);
    for topic in [PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC] {
        recovery.apply(&ledger, topic).await?;
    }
    recovery.finish().await
}

/// Writes the entries of BalanceTopic that the ledger lacks, each batch in a transaction; a dry run is one that is rolled back.
async fn entries(recovery: &mut Recovery, router: &Router) -> anyhow::Result<()> {
    let mut batches =
        recovery.topic(BALANCE_TOPIC).read(|record| Emitted::read(record, "entry of the ledger"))?;
    let (mut counts, mut progress) = (Counts::default(), Progress::default());
    let (mut stopped, mut overlap) = (HashSet::new(), Overlap::default());
    let mut client = recovery.client().await?;
    let mut transaction = client.transaction().await.context("cannot begin a transaction")?;
    while let Some(batch) = batches.next().await? {
        let batch: Vec<Emitted<LedgerEntry>> = recovery.readable(batch);
        let (owned, batch) = recovery.own(router, batch, |emitted| emitted.body.user_id).await?;
        let plan = store::recover(&transaction, &owned, &batch, &mut stopped).await?;
        for (emitted, is_present) in batch.iter().zip(&plan.is_present) {
            recovery.check_overlap(&mut overlap, emitted, !is_present)?;
        }
        counts.lacking += plan.lacking.len();
        counts.present += plan.is_present.iter().filter(|is_present| **is_present).count();
        counts.refused += plan.refused.len();
        if recovery.is_dry_run() {
            print(&plan.lacking);
        } else {
            transaction.commit().await.context("cannot commit")?;
            transaction = client.transaction().await.context("cannot begin a transaction")?;
        }
        for Refused { user_id, payment_id, place, why } in plan.refused {
            recovery.report(format_args!(
                "{place}: payment {payment_id}: {why}; no later entry of user {user_id} is written"
            ));
        }
        progress.print(&format_args!("{BALANCE_TOPIC}: {counts}"));
    }
    saga::say!("{BALANCE_TOPIC}: {counts}");
    Ok(())
}

/// Names each entry that is not there.
fn print(lacking: &[Lacking<'_>]) {
    for Lacking { entry, .. } in lacking {
        let LedgerEntry { payment_id, user_id, kind, amount, .. } = entry;
        saga::say!("lacking: {kind} of {amount}, payment {payment_id}, user {user_id}");
    }
}
