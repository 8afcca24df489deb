//! Applies batches of events to payments.
//!
//! * A batch is one read, and one compare-and-set per round.
//! * A batch that lost a race is rolled back and applied anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context;
use saga::consumer::{ApplyError, BatchCounts, MissingRow};
use saga::contract::Terms;
use saga::parked::{self, Parked};
use saga::postgres::{Transaction, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

use super::state;
use crate::command::Command;
use crate::saga::{RowEvent, State, Status, Step, judge, next};

/// The effect of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub applied: BatchCounts,
    /// Transitions committed, by event.
    pub transitions: BTreeMap<&'static str, u64>,
    /// The settle times of the payments that ended.
    pub settle_times: Vec<Duration>,
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
    owned: &Ownership,
    commands: &[&Command],
    unreadable: &[Parked],
    park: impl Fn(usize, &str) -> Parked,
) -> Result<Outcome, ApplyError> {
    let mut client = owned.client().await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let outcome = apply_in(&transaction, owned, commands, unreadable, park).await?;
    if outcome.applied.already > 0 {
        confirm_visible(&transaction).await?;
    }
    transaction.commit().await.context("cannot commit")?;
    Ok(outcome)
}

/// As [`apply`], in a transaction of the caller, who commits it.
///
/// # Errors
/// As [`apply`].
pub async fn apply_in(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    commands: &[&Command],
    unreadable: &[Parked],
    park: impl Fn(usize, &str) -> Parked,
) -> Result<Outcome, ApplyError> {
    let rows = read(transaction, owned, commands).await?;
    let plan = plan(commands, rows)?;
    let mut outcome = Outcome::default();
    for round in &plan.rounds {
        write(transaction, owned, round).await?;
        for transition in round {
            outcome.applied.applied += 1;
            *outcome.transitions.entry(transition.row_event.as_str()).or_default() += 1;
        }
    }
    outcome.settle_times = plan.settle_times;
    outcome.applied.parked = plan.to_park.len();
    outcome.applied.contradictions = plan.contradictions;
    outcome.applied.already = commands.len() - outcome.applied.applied - outcome.applied.parked;
    let to_park = plan.to_park.into_iter().map(|(index, reason)| park(index, &reason));
    let parked: Vec<Parked> = unreadable.iter().cloned().chain(to_park).collect();
    parked::insert(transaction, &parked).await?;
    Ok(outcome)
}

/// A payment as it was read.
struct PaymentRow {
    state: State,
    version: i32,
    terms: Terms,
    /// At the beginning of the transaction, which is when an end is dated.
    age: Duration,
}

/// By user and payment: a user's event never reaches another's payment.
type Rows = HashMap<(Uuid, Uuid), PaymentRow>;

/// Reads without locking: the write compares the version, and a batch that lost a race is applied anew.
async fn read(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    commands: &[&Command],
) -> anyhow::Result<Rows> {
    if commands.is_empty() {
        return Ok(Rows::new());
    }
    let statement = transaction
        .prepare_cached(
            "select p.payment_id, p.status, p.version, p.cancel_requested_at is not null, p.reason is not null,
                    p.user_id, p.amount, p.service_id, p.client_number,
                    extract(epoch from now() - p.initiated_at)::float8
             from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
             join payments p using (user_id, payment_id)
             where require_ownership($3, $4)",
        )
        .await?;
    let keys: BTreeSet<(Uuid, Uuid)> = commands.iter().map(|c| (c.user_id, c.payment_id)).collect();
    let (users, payments): (Vec<Uuid>, Vec<Uuid>) = keys.into_iter().unzip();
    let rows = transaction
        .query(&statement, &[&users, &payments, &owned.buckets, &owned.epochs])
        .await
        .context("cannot read payments")?;
    rows.iter().map(payment_row).collect()
}

fn payment_row(row: &Row) -> anyhow::Result<((Uuid, Uuid), PaymentRow)> {
    let (state, version) = state(row)?;
    let client_number = Some(row.get::<_, &str>(8).into());
    let terms = Terms { amount: row.get(6), service_id: row.get::<_, &str>(7).into(), client_number };
    // Negative after the database's clock was set back.
    let age = Duration::try_from_secs_f64(row.get(9)).unwrap_or_default();
    Ok(((row.get(5), row.get(0)), PaymentRow { state, version, terms, age }))
}

#[derive(Default)]
struct Plan<'a> {
    /// One statement updates a row only once, so a payment has at most one transition per round.
    rounds: Vec<Vec<Transition<'a>>>,
    /// Commands to park, each with its reason.
    to_park: Vec<(usize, String)>,
    /// The number of them that contradict the payment's row.
    contradictions: usize,
    /// Of the payments that end.
    settle_times: Vec<Duration>,
}

/// Decides every command in order of arrival, each on the state that its predecessors left.
fn plan<'a>(commands: &[&'a Command], mut rows: Rows) -> Result<Plan<'a>, ApplyError> {
    let mut plan = Plan::default();
    let mut missing = Vec::new();
    let mut moves: HashMap<Uuid, usize> = HashMap::new();
    for (index, command) in commands.iter().enumerate() {
        let Some(PaymentRow { state, version, terms, age }) =
            rows.get_mut(&(command.user_id, command.payment_id))
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
                // A terminal state is absorbing, so a payment ends once.
                if to.is_terminal() {
                    plan.settle_times.push(*age);
                }
            }
        }
        *state = next(state, &step);
    }
    if missing.is_empty() { Ok(plan) } else { Err(ApplyError::Missing(missing)) }
}

async fn write(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    round: &[Transition<'_>],
) -> anyhow::Result<()> {
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
             where p.user_id = n.user_id and p.payment_id = n.payment_id and p.version = n.version
               and require_ownership($7, $8)",
        )
        .await?;
    let users: Vec<Uuid> = round.iter().map(|t| t.command.user_id).collect();
    let payments: Vec<Uuid> = round.iter().map(|t| t.command.payment_id).collect();
    let versions: Vec<i32> = round.iter().map(|t| t.version).collect();
    let statuses: Vec<&str> = round.iter().map(|t| t.to.as_str()).collect();
    let events: Vec<&str> = round.iter().map(|t| t.row_event.as_str()).collect();
    let reasons: Vec<Option<&str>> = round.iter().map(|t| t.reason).collect();
    let updated = transaction
        .execute(
            &statement,
            &[&users, &payments, &versions, &statuses, &events, &reasons, &owned.buckets, &owned.epochs],
        )
        .await
        .context("cannot update payments")?;
    let expected = round.len() as u64;
    anyhow::ensure!(
        updated == expected,
        "only {updated} of {expected} payments still had the version that was read: another batch changed the others; the batch is tried again"
    );
    Ok(())
}
