//! All SQL of payments-svc.
//!
//! * Accepting a batch of requests is one statement and one commit, whatever its size.
//! * Applying a batch of events is one read, and one compare-and-set per round.
//! * A transition compares the row's version. A batch that lost a race is applied anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use saga::consumer::{ApplyError, BatchCounts, MissingRow};
use saga::contract::Terms;
use saga::parked::{self, Parked};
use saga::postgres::{Client, Pool, Transaction};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::events::Command;
use crate::saga::{Cancel, RowEvent, State, Status, Step, cancel, judge, next};

/// Tries to record a request to cancel. A payment has fewer transitions.
const CANCEL_TRIES_MAX: usize = 8;

/// A request to pay, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayment {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub idempotency_key: String,
    /// SHA-256 over the parsed fields.
    pub fingerprint: [u8; 32],
    pub client_number: String,
    pub service_id: String,
    pub amount: i64,
    pub traceparent: String,
}

/// The columns of a payment that never change. Its 201 is made of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedPayment {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub client_number: String,
    pub service_id: String,
    pub amount: i64,
    pub initiated_at: Timestamp,
    pub expires_at: Timestamp,
}

/// The outcome of a request to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    Created(AcceptedPayment),
    /// The same request was accepted before.
    Replayed(AcceptedPayment),
    /// The key was used for another request.
    KeyReused,
    /// The service is unknown or disabled; nothing was written.
    ServiceRefused,
}

/// Inserts all payments in one statement; returns their outcomes in the same order.
pub async fn insert_payments(
    pool: &Pool,
    payments: &[NewPayment],
    ttl: Duration,
) -> anyhow::Result<Vec<Acceptance>> {
    let client = pool.get().await.context("payments database")?;
    let created = insert(&client, payments, ttl).await?;
    let left: Vec<&NewPayment> = payments.iter().filter(|p| !created.contains_key(&p.payment_id)).collect();
    // The key counts before the service: its payment is replayed even when the service is disabled by now.
    let before = if left.is_empty() { HashMap::new() } else { by_key(&client, &left).await? };
    let outcome = |payment: &NewPayment| match created.get(&payment.payment_id) {
        Some((initiated_at, expires_at)) => Acceptance::Created(AcceptedPayment {
            user_id: payment.user_id,
            payment_id: payment.payment_id,
            client_number: payment.client_number.clone(),
            service_id: payment.service_id.clone(),
            amount: payment.amount,
            initiated_at: *initiated_at,
            expires_at: *expires_at,
        }),
        None => match before.get(&(payment.user_id, payment.idempotency_key.clone())) {
            None => Acceptance::ServiceRefused,
            Some((fingerprint, accepted)) if *fingerprint == payment.fingerprint => {
                Acceptance::Replayed(accepted.clone())
            }
            Some(_) => Acceptance::KeyReused,
        },
    };
    Ok(payments.iter().map(outcome).collect())
}

type Created = HashMap<Uuid, (Timestamp, Timestamp)>;

async fn insert(client: &Client, payments: &[NewPayment], ttl: Duration) -> anyhow::Result<Created> {
    let statement = client
        .prepare_cached(
            "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id,
                                   amount, traceparent, expires_at)
             select n.user_id, n.payment_id, n.idempotency_key, n.fingerprint, n.client_number, n.service_id,
                    n.amount, n.traceparent, now() + make_interval(secs => $9)
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::text[])
                  as n (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, traceparent)
             where exists (select from services s where s.service_id = n.service_id and s.enabled)
             on conflict on constraint payments_idempotency_key do nothing
             returning payment_id, initiated_at, expires_at",
        )
        .await
        .context("prepare insert")?;
    let users: Vec<Uuid> = payments.iter().map(|p| p.user_id).collect();
    let ids: Vec<Uuid> = payments.iter().map(|p| p.payment_id).collect();
    let keys: Vec<&str> = payments.iter().map(|p| p.idempotency_key.as_str()).collect();
    let fingerprints: Vec<&[u8]> = payments.iter().map(|p| p.fingerprint.as_slice()).collect();
    let numbers: Vec<&str> = payments.iter().map(|p| p.client_number.as_str()).collect();
    let services: Vec<&str> = payments.iter().map(|p| p.service_id.as_str()).collect();
    let amounts: Vec<i64> = payments.iter().map(|p| p.amount).collect();
    let traces: Vec<&str> = payments.iter().map(|p| p.traceparent.as_str()).collect();
    let rows = client
        .query(
            &statement,
            &[&users, &ids, &keys, &fingerprints, &numbers, &services, &amounts, &traces, &ttl.as_secs_f64()],
        )
        .await
        .context("insert payments")?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

type ByKey = HashMap<(Uuid, String), (Vec<u8>, AcceptedPayment)>;

async fn by_key(client: &Client, payments: &[&NewPayment]) -> anyhow::Result<ByKey> {
    let statement = client
        .prepare_cached(
            "select p.user_id, p.idempotency_key, p.fingerprint, p.payment_id, p.client_number, p.service_id,
                    p.amount, p.initiated_at, p.expires_at
             from unnest($1::uuid[], $2::text[]) as n (user_id, idempotency_key)
             join payments p using (user_id, idempotency_key)",
        )
        .await?;
    let users: Vec<Uuid> = payments.iter().map(|p| p.user_id).collect();
    let keys: Vec<&str> = payments.iter().map(|p| p.idempotency_key.as_str()).collect();
    let rows = client.query(&statement, &[&users, &keys]).await.context("look up idempotency keys")?;
    let accepted = |row: &Row| AcceptedPayment {
        user_id: row.get(0),
        payment_id: row.get(3),
        client_number: row.get(4),
        service_id: row.get(5),
        amount: row.get(6),
        initiated_at: row.get(7),
        expires_at: row.get(8),
    };
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), accepted(row)))).collect())
}

/// The effect of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub applied: BatchCounts,
    /// Transitions committed, by event.
    pub transitions: BTreeMap<&'static str, u64>,
}

/// One transition to write: compare-and-set on `version`.
struct Transition<'a> {
    command: &'a Command,
    version: i32,
    to: Status,
    row_event: RowEvent,
    reason: Option<&'a str>,
}

/// Applies `commands` in order and parks `unreadable`, in one transaction. `park` builds the parked message of the
/// command at an index.
///
/// # Errors
/// When rows are missing, a race was lost, or the database failed. Nothing was written then.
pub async fn apply(
    pool: &Pool,
    commands: &[&Command],
    unreadable: &[Parked],
    park: impl Fn(usize, String) -> Parked,
) -> Result<Outcome, ApplyError> {
    let mut client = pool.get().await.context("payments database")?;
    let transaction = client.transaction().await.context("begin")?;
    let rows = read(&transaction, commands).await?;
    let plan = plan(commands, rows)?;
    let mut outcome = Outcome::default();
    for round in &plan.rounds {
        write(&transaction, round).await?;
        for transition in round {
            outcome.applied.applied += 1;
            *outcome.transitions.entry(transition.row_event.as_str()).or_default() += 1;
        }
    }
    outcome.applied.parked = plan.to_park.len();
    outcome.applied.contradictions = plan.contradictions;
    outcome.applied.already = commands.len() - outcome.applied.applied - outcome.applied.parked;
    let to_park = plan.to_park.into_iter().map(|(index, reason)| park(index, reason));
    let parked: Vec<Parked> = unreadable.iter().cloned().chain(to_park).collect();
    parked::insert(&transaction, &parked).await?;
    transaction.commit().await.context("commit")?;
    Ok(outcome)
}

/// A payment as it was read.
struct PaymentRow {
    state: State,
    version: i32,
    terms: Terms,
}

/// By user and payment: a user's event never reaches another's payment.
type Rows = HashMap<(Uuid, Uuid), PaymentRow>;

/// Reads without locking: the write compares the version, and a batch that lost a race is applied anew.
async fn read(transaction: &Transaction<'_>, commands: &[&Command]) -> anyhow::Result<Rows> {
    if commands.is_empty() {
        return Ok(Rows::new());
    }
    let statement = transaction
        .prepare_cached(
            "select p.payment_id, p.status, p.version, p.cancel_requested_at is not null, p.reason is not null,
                    p.user_id, p.amount, p.service_id, p.client_number
             from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
             join payments p using (user_id, payment_id)",
        )
        .await?;
    let keys: BTreeSet<(Uuid, Uuid)> = commands.iter().map(|c| (c.user_id, c.payment_id)).collect();
    let (users, payments): (Vec<Uuid>, Vec<Uuid>) = keys.into_iter().unzip();
    let rows = transaction.query(&statement, &[&users, &payments]).await.context("read payments")?;
    rows.iter().map(payment_row).collect()
}

fn payment_row(row: &Row) -> anyhow::Result<((Uuid, Uuid), PaymentRow)> {
    let (state, version) = state(row)?;
    let client_number = Some(row.get::<_, &str>(8).into());
    let terms = Terms { amount: row.get(6), service_id: row.get::<_, &str>(7).into(), client_number };
    Ok(((row.get(5), row.get(0)), PaymentRow { state, version, terms }))
}

/// Reads columns 1 to 4: status, version, whether a cancel was requested, whether there is a reason.
fn state(row: &Row) -> anyhow::Result<(State, i32)> {
    let status = Status::parse(row.get(1)).context("status")?;
    let state = State {
        status,
        cancel_requested: row.get(3),
        // While authorized, only an unknown outcome sets the reason.
        outcome_unknown: status == Status::Authorized && row.get(4),
    };
    Ok((state, row.get(2)))
}

/// Records a request to cancel, by compare-and-set; `None` when this user has no such payment.
pub async fn request_cancel(pool: &Pool, user_id: Uuid, payment_id: Uuid) -> anyhow::Result<Option<Cancel>> {
    let client = pool.get().await.context("payments database")?;
    let read = client
        .prepare_cached(
            "select payment_id, status, version, cancel_requested_at is not null, reason is not null
             from payments where user_id = $1 and payment_id = $2",
        )
        .await?;
    let write = client
        .prepare_cached(
            "update payments set event = $4, version = version + 1, cancel_requested_at = now()
             where user_id = $1 and payment_id = $2 and version = $3",
        )
        .await?;
    // A payment has a handful of transitions, so a lost race is soon won.
    for _ in 0..CANCEL_TRIES_MAX {
        let row = client.query_opt(&read, &[&user_id, &payment_id]).await.context("read payment")?;
        let Some(row) = row else { return Ok(None) };
        let (state, version) = state(&row)?;
        let decided = cancel(&state);
        let Cancel::Record { row_event } = decided else { return Ok(Some(decided)) };
        let written = client
            .execute(&write, &[&user_id, &payment_id, &version, &row_event.as_str()])
            .await
            .context("record the request to cancel")?;
        if written == 1 {
            return Ok(Some(decided));
        }
    }
    anyhow::bail!(
        "payment {payment_id} changed during each of {CANCEL_TRIES_MAX} tries to record its cancel; send the request again"
    )
}

#[derive(Default)]
struct Plan<'a> {
    /// One statement updates a row only once, so a payment has at most one transition per round.
    rounds: Vec<Vec<Transition<'a>>>,
    /// Commands to park, each with its reason.
    to_park: Vec<(usize, String)>,
    /// The number of them that contradict the payment's row.
    contradictions: usize,
}

/// Decides every command in order of arrival, each on the state that its predecessors left.
fn plan<'a>(commands: &[&'a Command], mut rows: Rows) -> Result<Plan<'a>, ApplyError> {
    let mut plan = Plan::default();
    let mut missing = Vec::new();
    let mut moves: HashMap<Uuid, usize> = HashMap::new();
    for (index, command) in commands.iter().enumerate() {
        let Some(PaymentRow { state, version, terms }) = rows.get_mut(&(command.user_id, command.payment_id))
        else {
            missing.push(MissingRow {
                index,
                what: format!("payment {} of user {}", command.payment_id, command.user_id),
            });
            continue;
        };
        let step = match judge(terms, state, &command.terms, &command.event) {
            Ok(step) => step,
            Err(difference) => {
                plan.to_park.push((index, difference.to_string()));
                plan.contradictions += 1;
                continue;
            }
        };
        match step {
            Step::Already => {}
            Step::Missing => {
                missing.push(MissingRow { index, what: format!("hold of payment {}", command.payment_id) });
            }
            Step::Illegal(illegal) => plan.to_park.push((index, illegal.to_string())),
            Step::Move { to, row_event } => {
                let round = moves.entry(command.payment_id).or_default();
                if plan.rounds.len() == *round {
                    plan.rounds.push(Vec::with_capacity(commands.len()));
                }
                let reason = command.reason.as_deref();
                plan.rounds[*round].push(Transition { command, version: *version, to, row_event, reason });
                *round += 1;
                *version += 1;
            }
        }
        *state = next(state, &step);
    }
    if missing.is_empty() { Ok(plan) } else { Err(ApplyError::Missing(missing)) }
}

async fn write(transaction: &Transaction<'_>, round: &[Transition<'_>]) -> anyhow::Result<()> {
    let statement = transaction
        .prepare_cached(
            "update payments p
             set status = n.status, event = n.event, reason = n.reason, version = p.version + 1,
                 authorized_at = case when p.status = 'initiated' and n.status = 'authorized' then now() else p.authorized_at end,
                 completed_at = case when n.status = 'completed' then now() end,
                 rejected_at = case when n.status = 'rejected' then now() end,
                 failed_at = case when n.status = 'failed' then now() end,
                 cancelled_at = case when n.status = 'cancelled' then now() end
             from unnest($1::uuid[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::text[])
                  as n (user_id, payment_id, version, status, event, reason)
             where p.user_id = n.user_id and p.payment_id = n.payment_id and p.version = n.version",
        )
        .await?;
    let users: Vec<Uuid> = round.iter().map(|t| t.command.user_id).collect();
    let payments: Vec<Uuid> = round.iter().map(|t| t.command.payment_id).collect();
    let versions: Vec<i32> = round.iter().map(|t| t.version).collect();
    let statuses: Vec<&str> = round.iter().map(|t| t.to.as_str()).collect();
    let events: Vec<&str> = round.iter().map(|t| t.row_event.as_str()).collect();
    let reasons: Vec<Option<&str>> = round.iter().map(|t| t.reason).collect();
    let updated = transaction
        .execute(&statement, &[&users, &payments, &versions, &statuses, &events, &reasons])
        .await
        .context("update payments")?;
    let expected = round.len() as u64;
    anyhow::ensure!(
        updated == expected,
        "only {updated} of {expected} payments still had the version that was read: another batch changed the others; the batch is tried again"
    );
    Ok(())
}

/// A payment with its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    pub accepted: AcceptedPayment,
    pub status: String,
    pub reason: Option<String>,
    pub version: i32,
    pub authorized_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub rejected_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
    pub cancelled_at: Option<Timestamp>,
    pub cancel_requested_at: Option<Timestamp>,
}

/// One payment of a user; `None` when the user has no such payment.
pub async fn payment(pool: &Pool, user_id: Uuid, payment_id: Uuid) -> anyhow::Result<Option<Payment>> {
    let client = pool.get().await.context("payments database")?;
    let statement = client
        .prepare_cached(
            "select client_number, service_id, amount, initiated_at, expires_at, status, reason, version,
                    authorized_at, completed_at, rejected_at, failed_at, cancelled_at, cancel_requested_at
             from payments where user_id = $1 and payment_id = $2",
        )
        .await?;
    let row = client.query_opt(&statement, &[&user_id, &payment_id]).await.context("read payment")?;
    Ok(row.map(|row| Payment {
        accepted: AcceptedPayment {
            user_id,
            payment_id,
            client_number: row.get(0),
            service_id: row.get(1),
            amount: row.get(2),
            initiated_at: row.get(3),
            expires_at: row.get(4),
        },
        status: row.get(5),
        reason: row.get(6),
        version: row.get(7),
        authorized_at: row.get(8),
        completed_at: row.get(9),
        rejected_at: row.get(10),
        failed_at: row.get(11),
        cancelled_at: row.get(12),
        cancel_requested_at: row.get(13),
    }))
}

/// The enabled payment entities: id and name, by id.
pub async fn services(pool: &Pool) -> anyhow::Result<Vec<(String, String)>> {
    let client = pool.get().await.context("payments database")?;
    let statement = client
        .prepare_cached("select service_id, name from services where enabled order by service_id")
        .await?;
    let rows = client.query(&statement, &[]).await.context("read services")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
