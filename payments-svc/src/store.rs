//! All SQL of payments-svc.
//!
//! * Accepting a batch of requests is one statement and one commit, whatever its size.
//! * Applying a batch of events is one read, and one compare-and-set per round.
//! * A transition compares the row's version. A batch that lost a race is applied anew.
//! * Each statement about users names their buckets ([`Ownership`]): a database that does not own one refuses the statement.
//!   Those that look through the table leave out the rows of such buckets.
//!
//! A payment's row has practically one writer, since one consumer owns a user's partition. So batches read without a lock
//! and compare the version when they write; a batch that lost a race is applied anew. balance-svc locks, since all of a user's
//! payments share an account.

mod holds;
mod insert;
mod list;
mod recovery;
mod transitions;
mod unsettled;

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::{self, Parameters, Pool, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

pub use self::holds::{Hold, holds};
pub use self::insert::{Acceptance, NewPayment, earlier_payments, insert_payments};
pub use self::list::{Filter, Page, SCANNED_MAX, page, payment_by_key};
pub use self::recovery::{published_services, recover};
pub use self::transitions::{Outcome, apply, apply_in};
pub use self::unsettled::{
    UnsettledPayment, WalkStep, clock, ownership_changes, still_unsettled, unsettled_by_age,
    unsettled_by_block,
};
use crate::saga::{Cancel, State, Status, cancel};

/// Tries to record a request to cancel. A payment has fewer transitions.
const CANCEL_TRIES_MAX: usize = 8;

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

/// Reads columns 1 to 4: status, version, whether a cancel was requested, whether there is a reason.
fn state(row: &Row) -> anyhow::Result<(State, i32)> {
    let status = Status::parse(row.get(1))
        .context("a payment has an unknown status; database and service versions do not fit each other")?;
    let state = State {
        status,
        cancel_requested: row.get(3),
        // While authorized, only an unknown outcome sets the reason.
        outcome_unknown: status == Status::Authorized && row.get(4),
    };
    Ok((state, row.get(2)))
}

/// Records a request to cancel, by compare-and-set; `None` when this user has no such payment.
pub async fn request_cancel(
    owned: &Ownership,
    user_id: Uuid,
    payment_id: Uuid,
) -> anyhow::Result<Option<Cancel>> {
    let client = owned.client().await?;
    let read = client
        .prepare_cached(
            "select payment_id, status, version, cancel_requested_at is not null, reason is not null
             from payments where user_id = $1 and payment_id = $2 and require_ownership($3, $4)",
        )
        .await?;
    let write = client
        .prepare_cached(
            "update payments set event = $4, version = version + 1, cancel_requested_at = now()
             where user_id = $1 and payment_id = $2 and version = $3 and require_ownership($5, $6)",
        )
        .await?;
    // A payment has a handful of transitions, so a lost race is soon won.
    for _ in 0..CANCEL_TRIES_MAX {
        let row = client
            .query_opt(&read, &[&user_id, &payment_id, &owned.buckets, &owned.epochs])
            .await
            .context("cannot read payment")?;
        let Some(row) = row else { return Ok(None) };
        let (state, version) = state(&row)?;
        let decided = cancel(&state);
        let row_event = match decided {
            Cancel::Record { row_event } => row_event,
            Cancel::Already => {
                // The request may have been recorded by a commit that no standby has.
                confirm_visible(&client).await?;
                return Ok(Some(decided));
            }
            Cancel::TooLate(_) => return Ok(Some(decided)),
        };
        let written = client
            .execute(
                &write,
                &[&user_id, &payment_id, &version, &row_event.as_str(), &owned.buckets, &owned.epochs],
            )
            .await
            .context("cannot record the request to cancel")?;
        if written == 1 {
            return Ok(Some(decided));
        }
    }
    anyhow::bail!(
        "payment {payment_id} changed during each of {CANCEL_TRIES_MAX} tries to record its cancel; send the request again"
    )
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

/// The columns that [`Payment::of_row`] reads, by name.
const PAYMENT_COLUMNS: &str =
    "payment_id, client_number, service_id, amount, initiated_at, expires_at, status, reason,
    version, authorized_at, completed_at, rejected_at, failed_at, cancelled_at, cancel_requested_at";

impl Payment {
    fn of_row(user_id: Uuid, row: &Row) -> Self {
        Self {
            accepted: AcceptedPayment {
                user_id,
                payment_id: row.get("payment_id"),
                client_number: row.get("client_number"),
                service_id: row.get("service_id"),
                amount: row.get("amount"),
                initiated_at: row.get("initiated_at"),
                expires_at: row.get("expires_at"),
            },
            status: row.get("status"),
            reason: row.get("reason"),
            version: row.get("version"),
            authorized_at: row.get("authorized_at"),
            completed_at: row.get("completed_at"),
            rejected_at: row.get("rejected_at"),
            failed_at: row.get("failed_at"),
            cancelled_at: row.get("cancelled_at"),
            cancel_requested_at: row.get("cancel_requested_at"),
        }
    }

    /// Whether the processor does not know if the gateway charged: while authorized, only that sets the reason.
    pub fn is_outcome_unknown(&self) -> bool {
        self.reason.is_some() && Status::parse(&self.status) == Some(Status::Authorized)
    }

    /// Whether no event changes the payment any more.
    pub fn is_terminal(&self) -> bool {
        Status::parse(&self.status).is_some_and(Status::is_terminal)
    }
}

/// Payments by user and id, in the order of `wanted`; `None` for those that the user does not have. One statement.
pub async fn payments(owned: &Ownership, wanted: &[(Uuid, Uuid)]) -> anyhow::Result<Vec<Option<Payment>>> {
    let statement = format!(
        "select wanted.nth, found.*
         from unnest($1::uuid[], $2::uuid[]) with ordinality as wanted (user_id, payment_id, nth)
         cross join lateral (
             select {PAYMENT_COLUMNS} from payments p
             where p.user_id = wanted.user_id and p.payment_id = wanted.payment_id
         ) found
         where require_ownership($3, $4)"
    );
    let (users, ids): (Vec<Uuid>, Vec<Uuid>) = wanted.iter().copied().unzip();
    let parameters: Parameters<'_> = &[&users, &ids, &owned.buckets, &owned.epochs];
    let rows = owned.query(&statement, parameters, "cannot read payments").await?;
    let mut payments = vec![None; wanted.len()];
    for row in rows {
        let nth: i64 = row.get("nth");
        let at = usize::try_from(nth - 1).context("an ordinality below one")?;
        payments[at] = Some(Payment::of_row(users[at], &row));
    }
    Ok(payments)
}

/// The enabled payment entities: id and name, by id. They are no users', and every shard has them.
pub async fn services(pool: &Pool) -> anyhow::Result<Vec<(String, String)>> {
    let statement = "select service_id, name from services where enabled order by service_id";
    let rows = postgres::query(pool, statement, &[], "cannot read services").await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
