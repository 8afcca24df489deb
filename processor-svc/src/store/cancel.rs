//! The SQL of requests to cancel.
//!
//! * A charge that was never called ends `cancelled`, with or without a row.
//! * A request whose row changed meanwhile is decided again.
//! * A request about another charge than the row's is parked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use deadpool_postgres::GenericClient;
use saga::parked::{self, Parked};
use saga::postgres::{Transaction, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

use super::transitions::transit;
use super::{Store, Transition, charge, column, state};
use crate::charge::{CONFLICT, Charge, ChargeKey};
use crate::saga::{Event, State, Step, To, decide};
use crate::work::Job;

/// The outcome of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The charge ended now, without a call.
    Cancelled,
    /// The charge was cancelled before.
    Already,
    /// A call may have been made, or the charge has another terminal status.
    TooLate,
    /// The row is that of a different charge; the request is parked.
    Parked,
}

/// Rounds in which a request whose row changed is decided. A row that appears stays, and a charge that is called leaves
/// `waiting` for long, so more than three rounds are rare.
const ROUNDS_MAX: usize = 8;

// The insert waits for a concurrent insert of the same row. The second one inserts nothing and decides again.
// The lease is over at once, since nobody ever calls.
const INSERT_CANCELLED: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
                         status, reason, lease_until, decided_at)
    select payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
           'cancelled', 'cancel_requested', now(), now()
      from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[], $6::text[], $7::timestamptz[])
        as job (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at)
     where require_ownership($8, $9)
    on conflict do nothing
    returning payment_id";

const READ: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent, status, attempt, exposed
      from charges where payment_id = any($1) and require_ownership($2, $3)";

/// A request to cancel, and its index in the batch.
#[derive(Clone, Copy)]
struct CancelRequest<'a> {
    index: usize,
    job: &'a Job,
}

impl Store {
    /// Cancels charges that were never called and parks `unreadable`, all or nothing. Returns an outcome per request, in
    /// order. Further requests for the same payment are `Already`, or parked if their charge differs from the first.
    /// `park` builds the parked message of the request at an index.
    pub async fn cancel(
        &self,
        asked: &[&Job],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> anyhow::Result<Vec<CancelOutcome>> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.context("cannot begin a transaction")?;
        let answers = self.cancel_in(&transaction, asked, unreadable, park).await?;
        if answers.contains(&CancelOutcome::Already) {
            confirm_visible(&transaction).await?;
        }
        transaction.commit().await.context("cannot commit")?;
        Ok(answers)
    }

    /// As [`Store::cancel`], in a transaction of the caller, who commits it.
    pub async fn cancel_in(
        &self,
        transaction: &Transaction<'_>,
        asked: &[&Job],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> anyhow::Result<Vec<CancelOutcome>> {
        let owned = self.owned(&column(asked, |job| job.charge.user_id)).await?;
        let mut answers = vec![CancelOutcome::Already; asked.len()];
        // The first request of each payment, in one order everywhere, so that two batches with common rows seldom
        // deadlock.
        let mut open: BTreeMap<Uuid, CancelRequest<'_>> = BTreeMap::new();
        let mut parked = unreadable.to_vec();
        for (index, &job) in asked.iter().enumerate() {
            let first = open.entry(job.charge.payment_id).or_insert(CancelRequest { index, job });
            if !first.job.charge.is_same(&job.charge) {
                answers[index] = CancelOutcome::Parked;
                parked.push(park(index, CONFLICT));
            }
        }
        for _ in 0..ROUNDS_MAX {
            if open.is_empty() {
                break;
            }
            let round = self.round(transaction, &owned, &open).await;
            for (index, answer) in self.heeded(&owned, round).await? {
                if answer == CancelOutcome::Parked {
                    parked.push(park(index, CONFLICT));
                }
                answers[index] = answer;
                open.remove(&asked[index].charge.payment_id);
            }
        }
        if !open.is_empty() {
            bail!(
                "{} charges changed in every round; the requests to cancel them are tried again",
                open.len()
            );
        }
        parked::insert(transaction, &parked).await?;
        Ok(answers)
    }

    /// Reads, decides and writes one round. A request whose row changed meanwhile has no outcome.
    async fn round(
        &self,
        client: &impl GenericClient,
        owned: &Ownership,
        open: &BTreeMap<Uuid, CancelRequest<'_>>,
    ) -> anyhow::Result<Vec<(usize, CancelOutcome)>> {
        let there = read(client, owned, open).await?;
        let (mut answers, mut absent, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (payment_id, asked) in open {
            let from = match there.get(payment_id) {
                None => State::Absent,
                Some((row, _)) if !row.is_same(&asked.job.charge) => {
                    answers.push((asked.index, CancelOutcome::Parked));
                    continue;
                }
                Some((_, state)) => *state,
            };
            match decide(&from, &Event::CancelRequested) {
                Step::Insert(To::Cancelled) => absent.push(*asked),
                Step::Move(to @ To::Cancelled) => {
                    let ChargeKey { payment_id, user_id } = asked.job.charge.key();
                    let transition = Transition { payment_id, user_id, from, to, pause: Duration::ZERO };
                    waiting.push((asked.index, transition));
                }
                Step::Already => answers.push((asked.index, CancelOutcome::Already)),
                Step::TooLate => answers.push((asked.index, CancelOutcome::TooLate)),
                step @ (Step::Insert(_)
                | Step::Move(_)
                | Step::Inquire
                | Step::InquireLater
                | Step::Stale
                | Step::Contradiction
                | Step::Illegal) => bail!(
                    "a request to cancel led to the impossible step {step:?} from {from:?}; this is a defect"
                ),
            }
        }
        let inserted = insert(client, owned, &absent).await?;
        let transitions: Vec<Transition> = waiting.iter().map(|(_, transition)| transition.clone()).collect();
        let moved = transit(client, owned, &transitions, self.lease).await?;
        let done = absent.iter().map(|asked| (asked.index, asked.job.charge.payment_id));
        let done = done.filter(|(_, id)| inserted.contains(id)).map(|(index, _)| index);
        let ended = waiting.iter().filter(|(_, transition)| moved.contains(&transition.payment_id));
        answers.extend(
            done.chain(ended.map(|(index, _)| *index)).map(|index| (index, CancelOutcome::Cancelled)),
        );
        Ok(answers)
    }
}

async fn read(
    client: &impl GenericClient,
    owned: &Ownership,
    open: &BTreeMap<Uuid, CancelRequest<'_>>,
) -> anyhow::Result<HashMap<Uuid, (Charge, State)>> {
    let ids: Vec<Uuid> = open.keys().copied().collect();
    let read = client.prepare_cached(READ).await?;
    let rows = client.query(&read, &[&ids, &owned.buckets, &owned.epochs]).await;
    let rows = rows.context("cannot read charges to cancel")?;
    let row = |row: &Row| Ok((row.get("payment_id"), (charge(row), state(row)?)));
    rows.iter().map(row).collect()
}

async fn insert(
    client: &impl GenericClient,
    owned: &Ownership,
    absent: &[CancelRequest<'_>],
) -> anyhow::Result<HashSet<Uuid>> {
    if absent.is_empty() {
        return Ok(HashSet::new());
    }
    let insert = client.prepare_cached(INSERT_CANCELLED).await?;
    let rows = client
        .query(
            &insert,
            &[
                &column(absent, |a| a.job.charge.payment_id),
                &column(absent, |a| a.job.charge.user_id),
                &column(absent, |a| a.job.charge.client_number.as_str()),
                &column(absent, |a| a.job.charge.service_id.as_str()),
                &column(absent, |a| a.job.charge.amount),
                &column(absent, |a| a.job.charge.traceparent.as_deref()),
                &column(absent, |a| a.job.expires_at),
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot insert cancelled charges")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
