//! Reads a user's payments in pages, newest first.
//!
//! * A page is one statement, so it shows one moment.
//! * The primary key gives the order. No other index exists, since one on a column that a step updates would end
//!   heap-only updates: a filter examines rows, and so many at most.

use anyhow::Context;
use jiff::Timestamp;
use saga::shards::Ownership;
use uuid::Uuid;

use super::{PAYMENT_COLUMNS, Payment};
use crate::request::{payment_id, recovered_key};
use crate::saga::Status;

/// Payments that a page with a filter examines at most.
pub const SCANNED_MAX: u64 = 1000;

/// Which payments of a user a list shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub status: Option<Status>,
    pub service_id: Option<String>,
    /// Inclusive bound.
    pub from: Uuid,
    /// Exclusive bound: the list goes on below it.
    pub before: Uuid,
}

impl Filter {
    /// Whether a payment within the bounds may still not be shown.
    fn is_selective(&self) -> bool {
        self.status.is_some() || self.service_id.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub payments: Vec<Payment>,
    /// [`Filter::before`] of the next page; `None` at the end of the list.
    pub next: Option<Uuid>,
}

/// The newest payments of a user within `filter`, `limit` at most.
pub async fn page(owned: &Ownership, user_id: Uuid, filter: &Filter, limit: u64) -> anyhow::Result<Page> {
    // One more than the page shows whether another page follows.
    let (wanted, scanned_max) = (limit + 1, if filter.is_selective() { SCANNED_MAX } else { limit + 1 });
    let client = owned.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "with scanned as materialized (
                 select {PAYMENT_COLUMNS} from payments
                 where user_id = $1 and payment_id >= $2 and payment_id < $3
                 order by payment_id desc limit $4
             ), matching as (
                 select * from scanned
                 where ($5::text is null or status = $5) and ($6::text is null or service_id = $6)
                 order by payment_id desc limit $7
             ), scan as (
                 select count(*) as rows, (select s.payment_id from scanned s order by s.payment_id limit 1) as last
                 from scanned
             )
             select m.*, scan.rows, scan.last from scan left join matching m on true
             where require_ownership($8, $9) order by m.payment_id desc"
        ))
        .await
        .context("cannot prepare the list of payments")?;
    let status = filter.status.map(Status::as_str);
    let (scanned_limit, wanted_limit) = (i64::try_from(scanned_max)?, i64::try_from(wanted)?);
    let rows = client
        .query(
            &statement,
            &[
                &user_id,
                &filter.from,
                &filter.before,
                &scanned_limit,
                &status,
                &filter.service_id,
                &wanted_limit,
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot list payments")?;
    let Some(scan) = rows.first() else { anyhow::bail!("the list of payments has no row about its scan") };
    let scanned = scan.get::<_, i64>("rows").unsigned_abs();
    let last_scanned: Option<Uuid> = scan.get("last");
    let matching = rows.iter().filter(|row| row.get::<_, Option<Uuid>>("payment_id").is_some());
    let payments = matching.map(|row| Payment::of_row(user_id, row)).collect();
    Ok(cut(payments, limit, last_scanned.filter(|_| scanned == scanned_max)))
}

/// The page of at most `limit` of `payments`. `last_scanned` is the payment at which the scan reached its limit.
fn cut(mut payments: Vec<Payment>, limit: u64, last_scanned: Option<Uuid>) -> Page {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = payments.len() > limit;
    payments.truncate(limit);
    let last_shown = payments.last().map(|payment| payment.accepted.payment_id);
    Page { next: if has_more { last_shown } else { last_scanned }, payments }
}

/// The payment of a user that this idempotency key made. After a restore it may have the key that its id stands for.
pub async fn payment_by_key(owned: &Ownership, user_id: Uuid, key: &str) -> anyhow::Result<Option<Payment>> {
    let client = owned.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select * from (
                 select 1 as nth, {PAYMENT_COLUMNS} from payments where user_id = $1 and idempotency_key = $2
                 union all
                 select 2, {PAYMENT_COLUMNS} from payments where user_id = $1 and idempotency_key = $3
             ) found where require_ownership($4, $5) order by nth limit 1"
        ))
        .await?;
    let recovered = recovered_key(payment_id(Timestamp::UNIX_EPOCH, user_id, key));
    let row = client
        .query_opt(&statement, &[&user_id, &key, &recovered, &owned.buckets, &owned.epochs])
        .await
        .context("cannot look up the key")?;
    Ok(row.map(|row| Payment::of_row(user_id, &row)))
}
