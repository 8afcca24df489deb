//! `processor-svc recover`: makes the rows again that a restored database lacks of charges, and opens it.
//!
//! * PaymentResultTopic has every outcome that was emitted. What the database lacks of them is written again, to the bytes of
//!   the event ([`plan`]).
//! * Every other charge that may have been called is inquired about before anything is sent: the open ones of the database,
//!   and each payment for which work was emitted. The gateway's answer decides, and what it does not know is sent under the
//!   same key as ever. Requests to cancel are applied after that, and end what never was work.
//! * Work may have waited in the queue for long before it was taken up. So PaymentTopic is read from [`QUEUED_MAX`] earlier.
//! * What was parked, and what operators did with it, is put back. What two operators said of a charge is not: its outcome is,
//!   and OperatorTopic has the record.

pub mod plan;

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler, Record, TopicRange};
use saga::contract::{
    ChargeResult, Envelope, EventType, PAYMENT_QUEUE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, Payment,
};
use saga::parked::Parked;
use saga::postgres::{Client, Transaction};
use saga::recovery::{Emitted, Overlap, Progress, Recovery, Settings};

use crate::charge::ChargeKey;
use crate::recovery::plan::{RowState, compare, emitted_work, last_versions};
use crate::store::Store;
use crate::work::Job;
use crate::{SERVICE, events};

/// How long work may have waited in the queue before the time from which the topics are read.
const QUEUED_MAX: Duration = Duration::from_secs(3600);
/// A call may be under way for so long after the database was lost. It is the lease of a service with the settings that it has
/// by default; an inquiry before the end of a call finds out later.
const LEASE: Duration = Duration::from_secs(30);

/// Recovers the database and opens it.
///
/// # Errors
/// When there are findings, or a server failed. It may be run again.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    run_within(LEASE, settings).await
}

/// As [`run`], where a call that may be under way ends within `lease`.
///
/// # Errors
/// As [`run`].
pub async fn run_within(lease: Duration, settings: Settings) -> anyhow::Result<()> {
    let mut recovery = Recovery::begin(settings, SERVICE).await?;
    recovery.parked(&[PAYMENT_TOPIC, PAYMENT_QUEUE]).await?;
    let store = Store::new(recovery.pool().clone(), lease);
    let mut client = recovery.client().await?;
    charges(&mut recovery, &store, &mut client).await?;
    drop(client);
    // By then each charge that may have been called has a row, for which the request comes too late.
    recovery.apply(&LostCancels(store), PAYMENT_TOPIC).await?;
    recovery.finish().await
}

/// Each batch is a transaction; a dry run is one that is rolled back.
async fn charges(recovery: &mut Recovery, store: &Store, client: &mut Client) -> anyhow::Result<()> {
    let is_dry_run = recovery.is_dry_run();
    let mut transaction = client.transaction().await.context("cannot begin a transaction")?;
    let (mut outcomes, mut progress) = (OutcomeCounts::default(), Progress::default());
    let mut overlap = Overlap::default();
    let mut batches =
        recovery.topic(PAYMENT_RESULT_TOPIC).read(|record| Emitted::read(record, "outcome of a charge"))?;
    while let Some(batch) = batches.next().await? {
        let batch = recovery.readable(batch);
        let written = write_outcomes(recovery, store, &transaction, &batch, &mut overlap).await?;
        outcomes.lacking += written.lacking;
        outcomes.present += written.present;
        outcomes.differ += written.differ;
        if !is_dry_run {
            transaction.commit().await.context("cannot commit")?;
            transaction = client.transaction().await.context("cannot begin a transaction")?;
        }
        progress.print(&format_args!("{PAYMENT_RESULT_TOPIC}: {outcomes}"));
    }
    saga::say!("{PAYMENT_RESULT_TOPIC}: {outcomes}");
    let open = store.expose_open(&transaction).await?;
    saga::say!("{open} open charges of the database are inquired about");
    let (mut work, mut progress) = (WorkCounts::default(), Progress::default());
    let mut batches = queued(recovery).read(read_payment)?;
    while let Some(batch) = batches.next().await? {
        let batch = recovery.readable(batch.into_iter().flatten().collect());
        let WorkCounts { lacking, present } = write_work(store, &transaction, batch).await?;
        work.lacking += lacking;
        work.present += present;
        if !is_dry_run {
            transaction.commit().await.context("cannot commit")?;
            transaction = client.transaction().await.context("cannot begin a transaction")?;
        }
        progress.print(&format_args!("{PAYMENT_TOPIC}: {work}"));
    }
    saga::say!("{PAYMENT_TOPIC}: {work}");
    if !is_dry_run {
        transaction.commit().await.context("cannot commit")?;
    }
    Ok(())
}

/// PaymentTopic from before the time that the operator named.
fn queued(recovery: &Recovery) -> TopicRange {
    let range = recovery.topic(PAYMENT_TOPIC);
    let since = range.since.map(|since| since.checked_sub(QUEUED_MAX).unwrap_or(jiff::Timestamp::MIN));
    TopicRange { since, ..range }
}

/// `None` for an event of a payment that is not authorized yet or has ended, whatever its body.
fn read_payment(record: &Record<'_>) -> Option<Result<Emitted<Payment>, String>> {
    let no_event = |why: String| format!("{}: is no event of a payment: {why}", record.place());
    let envelope = match record.envelope() {
        Ok(envelope) => envelope,
        Err(why) => return Some(Err(no_event(why))),
    };
    match envelope.event_type {
        EventType::PaymentAuthorized
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRequested => {}
        EventType::PaymentInitiated
        | EventType::PaymentCancelRecorded
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::BalanceHeld
        | EventType::BalanceRejected
        | EventType::BalanceCaptured
        | EventType::BalanceReleased
        | EventType::BalanceDeposited
        | EventType::ResultSucceeded
        | EventType::ResultDeclined
        | EventType::ResultUnknown
        | EventType::ResultExpired
        | EventType::ResultCancelled
        | EventType::ServiceAdded
        | EventType::ServiceChanged => return None,
    }
    let body = envelope.read::<Payment>(record.body());
    Some(body.map(|body| Emitted::new(record, body)).map_err(|error| no_event(error.to_string())))
}

/// The outcomes of the topic, by what the database had of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OutcomeCounts {
    lacking: u64,
    present: u64,
    differ: u64,
}

impl fmt::Display for OutcomeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, present, differ } = self;
        write!(f, "{lacking} outcomes lacking, {present} there, {differ} differ")
    }
}

async fn write_outcomes(
    recovery: &mut Recovery,
    store: &Store,
    transaction: &Transaction<'_>,
    batch: &[Emitted<ChargeResult>],
    overlap: &mut Overlap,
) -> anyhow::Result<OutcomeCounts> {
    let key = |body: &ChargeResult| ChargeKey { payment_id: body.payment_id, user_id: body.user_id };
    let keys: Vec<ChargeKey> = batch.iter().map(|emitted| key(&emitted.body)).collect();
    let rows = store.published(transaction, &keys).await?;
    let (mut counts, mut lacking) = (OutcomeCounts::default(), Vec::new());
    for emitted in batch {
        let Emitted { body, place, .. } = emitted;
        let row_state = compare(rows.get(&body.payment_id), body);
        recovery.check_overlap(overlap, emitted, row_state == RowState::Lacking)?;
        match row_state {
            RowState::Lacking => lacking.push(body),
            RowState::Present => counts.present += 1,
            RowState::Differs => {
                counts.differ += 1;
                let (payment_id, version) = (body.payment_id, body.version);
                recovery.report(format_args!(
                    "{place}: payment {payment_id}: its charge has version {version} with other columns"
                ));
            }
        }
    }
    let last: Vec<&ChargeResult> =
        last_versions(lacking.iter().copied()).into_iter().map(|index| lacking[index]).collect();
    if recovery.is_dry_run() {
        for ChargeResult { payment_id, status, version, .. } in &last {
            saga::say!("lacking: payment {payment_id}, its charge is {status}, version {version}");
        }
    }
    counts.lacking = store.write_outcomes(transaction, &last).await?;
    Ok(counts)
}

/// The payments for which work was emitted, by whether the database had their charges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WorkCounts {
    lacking: u64,
    present: u64,
}

impl fmt::Display for WorkCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, present } = self;
        write!(f, "{lacking} charges lacking, which are inquired about, {present} there")
    }
}

/// Inserts the charges of a batch that the database lacks.
async fn write_work(
    store: &Store,
    transaction: &Transaction<'_>,
    batch: Vec<Emitted<Payment>>,
) -> anyhow::Result<WorkCounts> {
    let mut payments = HashSet::with_capacity(batch.len());
    let jobs = batch.into_iter().filter_map(|emitted| emitted_work(emitted.body));
    let jobs: Vec<Job> = jobs.filter(|job| payments.insert(job.charge.payment_id)).collect();
    let lacking = store.insert_exposed(transaction, &jobs.iter().collect::<Vec<_>>()).await?;
    Ok(WorkCounts { lacking, present: jobs.len() as u64 - lacking })
}

/// Applies requests to cancel, as the service does, beside which there is neither a cache nor a queue.
#[derive(Clone)]
struct LostCancels(Store);

impl EventHandler for LostCancels {
    type Event = Job;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Job> {
        events::decode(envelope, body)
    }

    async fn apply(
        &self,
        requests: &[&Job],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> Result<BatchCounts, ApplyError> {
        Ok(events::counts(&self.0.cancel(requests, unreadable, park).await?))
    }
}
