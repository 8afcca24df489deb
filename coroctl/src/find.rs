//! `coroctl find`: payments by user, id, status, age, client number or service, newest first.
//!
//! * It reads the payments database only, or each of its shards, as a role that may only read. Of a shard those payments count
//!   whose users it owns ([`owned_rows`](crate::owned_rows)).
//! * A statement reads a bounded time: the block range index of `initiated_at` leads to the blocks of that time, or, for one
//!   user, the primary key, whose ids sort by time. Windows grow while nothing is found.
//! * A page has at most `--limit` payments, and names the place where the next one begins.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::age::{Age, describe};
use crate::databases::ServiceDatabases;
use crate::listing;
use crate::snapshots::{self, LocatedRow, MOVE_TIMEOUT, Snapshot, Snapshots};

/// How far back a search goes that names neither a user nor an age.
const SEARCHED: Age = Age::hours(24);
/// A payment_id holds the time of its request by the service's clock, `initiated_at` that of its commit by the database's.
const CLOCKS_DIFFER_MAX: SignedDuration = SignedDuration::from_hours(1);
/// The time that the first statement reads, and the longest.
const WINDOW_MIN: SignedDuration = SignedDuration::from_mins(10);
const WINDOW_MAX: SignedDuration = SignedDuration::from_hours(6);
/// The same for one user, whose payments are few.
const USER_WINDOW_MIN: SignedDuration = SignedDuration::from_hours(24 * 30);
const USER_WINDOW_MAX: SignedDuration = SignedDuration::from_hours(24 * 3650);

pub const STATUSES: [&str; 6] = ["initiated", "authorized", "completed", "rejected", "failed", "cancelled"];

#[derive(Args)]
pub struct Find {
    /// Payments of this user. Then the search has no time limit, unless you set one.
    #[arg(long, value_name = "UUID")]
    pub user: Option<Uuid>,
    /// The payment with this id.
    #[arg(long, value_name = "UUID", conflicts_with_all = ["older_than", "newer_than", "after"])]
    pub payment: Option<Uuid>,
    /// Payments that have this status. Repeat the option for more.
    #[arg(long, value_parser = STATUSES)]
    pub status: Vec<String>,
    /// Payments with this client number: a meter, a phone number.
    #[arg(long, value_name = "TEXT")]
    pub client_number: Option<String>,
    /// Payments to this service.
    #[arg(long, value_name = "ID")]
    pub service: Option<String>,
    /// Payments that were accepted longer ago than this: 90s, 15m, 2h, 7d.
    #[arg(long, value_name = "AGE")]
    pub older_than: Option<Age>,
    /// Payments that were accepted within this time. Without it, and without --user, the last 24 hours are searched.
    #[arg(long, value_name = "AGE")]
    pub newer_than: Option<Age>,
    /// The largest number of payments to print.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Go on behind this payment: the `next` of an earlier page.
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<Cursor>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    /// The payments database, as a role that may read it, or its shards: NAME=URL of each, separated by spaces.
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true)]
    pub payments_database_url: String,
}

/// The place behind a payment, in the order of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    initiated_at: Timestamp,
    payment_id: Uuid,
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/');
        let parsed = parts.and_then(|(at, id)| Some((at.parse().ok()?, id.parse().ok()?)));
        let (initiated_at, payment_id) = parsed.ok_or("give the `next` of an earlier page, unchanged")?;
        Ok(Self { initiated_at, payment_id })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.initiated_at, self.payment_id)
    }
}

/// A payment that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Payment {
    pub payment_id: Uuid,
    /// The shard that has it, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    pub user_id: Uuid,
    pub service_id: String,
    pub client_number: String,
    /// Minor units.
    pub amount: i64,
    pub status: String,
    /// What happened last.
    pub event: String,
    pub reason: Option<String>,
    pub version: i32,
    pub initiated_at: Timestamp,
    pub authorized_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub cancel_requested_at: Option<Timestamp>,
}

const COLUMNS: &str = "payment_id, user_id, service_id, client_number, amount, status, event, reason, version,
    initiated_at, authorized_at, coalesce(completed_at, rejected_at, failed_at, cancelled_at), cancel_requested_at";

const CONDITIONS: &str = "
     where initiated_at >= $1 and initiated_at < $2 and (initiated_at, payment_id) < ($3, $4)
       and ($5::uuid is null or payment_id = $5)
       and (cardinality($6::text[]) = 0 or status = any($6))
       and ($7::text is null or client_number = $7)
       and ($8::text is null or service_id = $8)";

const ORDER: &str = "order by initiated_at desc, payment_id desc";

/// The payments of a page, and how far it has searched.
#[derive(Debug, Serialize)]
pub struct Page {
    pub payments: Vec<Payment>,
    pub searched_from: Timestamp,
    pub searched_to: Timestamp,
    /// Where the next page begins; null when this was the last.
    pub next: Option<String>,
    /// Users who are not searched, since no shard owns them, or two do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// Prints the payments.
///
/// # Errors
/// When the database does not answer, or the id is not that of a payment.
pub async fn run(find: &Find) -> Result<()> {
    let databases = ServiceDatabases::open("payments", &find.payments_database_url).await?;
    let payments = Snapshots::take(&databases, MOVE_TIMEOUT).await?;
    let page = page(&payments, find, Timestamp::now()).await?;
    if find.json {
        saga::say!("{}", serde_json::to_string_pretty(&page)?);
        return Ok(());
    }
    saga::say!("{}", text(&page));
    Ok(())
}

/// Searches window by window, the newest first, until the page is full or the time is searched.
///
/// # Errors
/// As [`run`].
pub async fn page(databases: &Snapshots<'_>, find: &Find, now: Timestamp) -> Result<Page> {
    let (from, to) = searched(find, now)?;
    let (first, most) = match find.user {
        Some(_) => (USER_WINDOW_MIN, USER_WINDOW_MAX),
        None => (WINDOW_MIN, WINDOW_MAX),
    };
    let limit = usize::from(find.limit);
    let mut payments: Vec<Payment> = Vec::new();
    let (mut end, mut window) = (to, first);
    while end > from && payments.len() < limit {
        let begin = end.min(now).checked_sub(window).map_or(from, |begin| begin.max(from));
        let room = limit - payments.len();
        let mut found = Vec::new();
        for of in &databases.each {
            found.extend(within(of, find, (begin, end), room).await?);
        }
        found.sort_by_key(|payment: &Payment| std::cmp::Reverse((payment.initiated_at, payment.payment_id)));
        payments.extend(found.into_iter().take(room));
        (end, window) = (begin, (window * 2).min(most));
    }
    let is_full = payments.len() == limit;
    let last = payments.last().filter(|_| is_full);
    let next =
        last.map(|last| Cursor { initiated_at: last.initiated_at, payment_id: last.payment_id }.to_string());
    let searched_from = last.map_or(from, |last| last.initiated_at);
    let left_out = snapshots::left_out(&[databases]);
    Ok(Page { payments, searched_from, searched_to: to.min(now), next, left_out })
}

/// The time to search, its end excluded.
fn searched(find: &Find, now: Timestamp) -> Result<(Timestamp, Timestamp)> {
    if let Some(payment_id) = find.payment {
        return accepted_between(payment_id);
    }
    // Clocks differ, and the newest payments are wanted too.
    let to = match (find.after, find.older_than) {
        (Some(cursor), _) => cursor.initiated_at.checked_add(SignedDuration::from_micros(1))?,
        (None, Some(age)) => age.before(now),
        (None, None) => now.checked_add(CLOCKS_DIFFER_MAX)?,
    };
    let from = match (find.newer_than, find.user) {
        (Some(age), _) => age.before(now),
        (None, None) => find.older_than.map_or(SEARCHED.before(now), |age| SEARCHED.before(age.before(now))),
        (None, Some(_)) => Timestamp::UNIX_EPOCH,
    };
    Ok((from, to))
}

/// The time in which a payment with this id was committed.
///
/// # Errors
/// When it is no UUIDv7: then no payment has this id.
pub fn accepted_between(payment_id: Uuid) -> Result<(Timestamp, Timestamp)> {
    let at = payment_id.get_timestamp().filter(|_| payment_id.get_version_num() == 7).with_context(|| {
        format!("{payment_id} is no payment_id: those are UUIDs of version 7, which hold their time")
    })?;
    let (seconds, nanoseconds) = at.to_unix();
    let at = Timestamp::new(i64::try_from(seconds)?, i32::try_from(nanoseconds)?)?;
    Ok((at.checked_sub(CLOCKS_DIFFER_MAX)?, at.checked_add(CLOCKS_DIFFER_MAX)?))
}

/// The smallest payment_id of a time.
fn first_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.as_millisecond()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
}

async fn within(
    of: &Snapshot<'_>,
    find: &Find,
    (begin, end): (Timestamp, Timestamp),
    room: usize,
) -> Result<Vec<Payment>> {
    let (at, id) = match find.after {
        Some(cursor) => (cursor.initiated_at, cursor.payment_id),
        None => (end, Uuid::max()),
    };
    let room = i64::try_from(room)?;
    let mut parameters: Vec<&(dyn ToSql + Sync)> =
        vec![&begin, &end, &at, &id, &find.payment, &find.status, &find.client_number, &find.service, &room];
    // The ids of the time, so that a walk through the primary key has an end.
    let ids = (
        first_id(begin.checked_sub(CLOCKS_DIFFER_MAX).unwrap_or(Timestamp::UNIX_EPOCH)),
        first_id(end.checked_add(CLOCKS_DIFFER_MAX)?),
    );
    let mut query = format!("select {COLUMNS} from {{payments}} p {CONDITIONS}");
    if let Some(user) = &find.user {
        query.push_str(" and user_id = $10 and payment_id >= $11 and payment_id < $12");
        parameters.extend([user as &(dyn ToSql + Sync), &ids.0, &ids.1]);
    }
    query.push_str(&format!(" {ORDER} limit $9"));
    let rows = of.client.query(&of.rows.statement(&query), &parameters).await.with_context(|| {
        format!(
            "the {} database did not answer in time; name a shorter time by --newer-than and --older-than",
            of.name()
        )
    })?;
    Ok(rows.iter().map(|row| payment(row, of.rows.shard())).collect())
}

fn payment(row: &Row, shard: Option<&str>) -> Payment {
    Payment {
        payment_id: row.get(0),
        shard: shard.map(str::to_owned),
        user_id: row.get(1),
        service_id: row.get(2),
        client_number: row.get(3),
        amount: row.get(4),
        status: row.get(5),
        event: row.get(6),
        reason: row.get(7),
        version: row.get(8),
        initiated_at: row.get(9),
        authorized_at: row.get(10),
        ended_at: row.get(11),
        cancel_requested_at: row.get(12),
    }
}

/// The one payment with this id.
///
/// # Errors
/// When there are two, or a database does not answer.
pub async fn one(databases: &Snapshots<'_>, payment_id: Uuid) -> Result<Option<Payment>> {
    let (begin, end) = accepted_between(payment_id)?;
    let query = format!(
        "select {COLUMNS} from {{payments}} p where initiated_at >= $1 and initiated_at < $2 and payment_id = $3"
    );
    let parameters: [&(dyn ToSql + Sync); 3] = [&begin, &end, &payment_id];
    let mut found = databases.query(&query, &parameters, "payments database").await?;
    ensure!(found.len() < 2, "two payments have the id {payment_id}: run `coroctl audit`");
    Ok(found.pop().map(|LocatedRow { shard, row }| payment(&row, shard)))
}

fn text(page: &Page) -> String {
    let now = Timestamp::now();
    let header = ["PAYMENT", "USER", "SERVICE", "CLIENT", "AMOUNT", "STATUS", "ACCEPTED", "AGE", "REASON"];
    let rows = page.payments.iter().map(|payment| {
        let row = [
            payment.payment_id.to_string(),
            payment.user_id.to_string(),
            payment.service_id.clone(),
            payment.client_number.clone(),
            payment.amount.to_string(),
            payment.status.clone(),
            listing::time(payment.initiated_at),
            describe(now.duration_since(payment.initiated_at)),
            listing::optional(payment.reason.as_deref()),
        ];
        (payment.shard.as_deref(), row)
    });
    let found = match page.payments.len() {
        0 => "No payment was found".to_owned(),
        1 => format!("{}\n\n1 payment", listing::located(header, rows)),
        count => format!("{}\n\n{count} payments", listing::located(header, rows)),
    };
    let (from, to) = (listing::time(page.searched_from), listing::time(page.searched_to));
    let more = page.next.as_ref().map(|next| format!(" There may be more: --after {next}"));
    let left_out = page.left_out.as_ref().map(|left_out| format!("\n\n{left_out}"));
    format!(
        "{found}, accepted from {from} to {to}.{}{}",
        more.unwrap_or_default(),
        left_out.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        let cursor =
            Cursor { initiated_at: "2026-01-02T03:04:05.123456Z".parse().unwrap(), payment_id: Uuid::max() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "/", "2026-01-02T03:04:05Z", "now/1"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_payment_id_says_when_it_was_accepted() {
        let (begin, end) = accepted_between(Uuid::now_v7()).unwrap();
        assert!((begin..end).contains(&Timestamp::now()));
        assert!(accepted_between(Uuid::new_v4()).is_err());
        let now = Timestamp::now();
        let id = Uuid::now_v7();
        assert!(first_id(now.checked_sub(SignedDuration::from_secs(1)).unwrap()) < id);
        assert!(id < first_id(now.checked_add(SignedDuration::from_secs(1)).unwrap()));
    }
}
