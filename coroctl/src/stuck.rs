//! `coroctl stuck`: payments that have not ended in time, each with the step that it waits for.
//!
//! * It reads the databases, as a role that may only read: the payments by their age, and what belongs to them in sets. Of several
//!   shards of a service those rows count that [`owned_rows`](crate::owned_rows) says.
//! * Whether an event is on Kafka it does not look up; it says which of the relay's slots is not read. `coroctl explain` says
//!   the rest about one payment.
//! * The oldest come first. `--limit` bounds them, and `--within` the time that is read.

use std::collections::HashMap;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::age::{Age, describe};
use crate::databases::{self, DatabaseUrls, Databases};
use crate::listing;
use crate::parked::OPEN_BY_PAYMENT;
use crate::progress::{self, Facts};
use crate::snapshots::{LocatedRow, SagaSnapshots};

const REASON_CHARS_MAX: usize = 100;

#[derive(Args)]
pub struct Stuck {
    /// Payments that were accepted longer ago than this and have not ended: 30s, 5m, 2h, 1d.
    #[arg(long, value_name = "AGE", default_value = "1m")]
    pub older_than: Age,
    /// How far back to look. A statement reads every payment of this time: 4 million a day, at 50 a second.
    #[arg(long, value_name = "AGE", default_value = "7d")]
    pub within: Age,
    /// The largest number of payments to print.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub databases: DatabaseUrls,
}

/// A payment that has not ended.
#[derive(Debug, Serialize)]
pub struct StuckPayment {
    pub payment_id: Uuid,
    /// The shard that has the payment, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    pub user_id: Uuid,
    pub amount: i64,
    pub status: String,
    pub accepted_at: Timestamp,
    /// The process that has to take the next step, or `operator`.
    pub service: &'static str,
    /// The end of a sentence that begins with "It waits for".
    pub waits_for: String,
    /// When its last row was committed.
    pub since: Timestamp,
    pub last_error: Option<String>,
}

/// The state of a slot of the relay.
#[derive(Debug, Serialize)]
pub struct Slot {
    pub database: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    pub name: String,
    /// A relay reads it.
    pub active: bool,
    /// Bytes of WAL that are not confirmed.
    pub lag_bytes: i64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub payments: Vec<StuckPayment>,
    /// There are more than `--limit`.
    pub more: bool,
    pub slots: Vec<Slot>,
    /// Users who are not looked at, since no shard owns them, or two do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// Prints the payments.
///
/// # Errors
/// When a database does not answer.
pub async fn run(stuck: &Stuck) -> Result<()> {
    let databases = Databases::open(&stuck.databases).await?;
    let report = report(&databases, stuck, Timestamp::now()).await?;
    if stuck.json {
        saga::say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        saga::say!("{}", text(&report));
    }
    Ok(())
}

// The range of `initiated_at` leads to blocks by its index; no index names a column that a step updates.
const OPEN: &str = "
    select payment_id, user_id, service_id, amount, status, reason, initiated_at, authorized_at
      from {payments} p
     where initiated_at >= $1 and initiated_at < $2 and status in ('initiated', 'authorized')
     order by initiated_at, payment_id limit $3";

const ENTRIES: &str = "
    select payment_id, kind, created_at
      from unnest($1::uuid[], $2::uuid[]) as wanted (user_id, payment_id)
      join {ledger} l using (user_id, payment_id)
     order by phase";

const CHARGES: &str = "
    select payment_id, user_id, service_id, amount, status, reason, coalesce(decided_at, created_at)
      from {charges} c where payment_id = any($1)";

const ATTEMPTS: &str = "
    select distinct on (payment_id) payment_id, kind, outcome, detail, at
      from {charge_attempts} a where payment_id = any($1)
     order by payment_id, attempt desc, seq desc";

const SLOTS: &str = "
    select slot_name::text, active,
           coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint
      from pg_replication_slots
     where database = current_database() and slot_type = 'logical' and not temporary
     order by slot_name";

/// Reads the payments and what belongs to them: one statement a table.
///
/// # Errors
/// As [`run`].
pub async fn report(databases: &Databases, stuck: &Stuck, now: Timestamp) -> Result<Report> {
    let (from, to, limit) =
        (stuck.within.before(now), stuck.older_than.before(now), usize::from(stuck.limit));
    let wanted = i64::try_from(limit + 1)?;
    let snapshots = SagaSnapshots::take(databases).await?;
    let failed = "the payments database did not answer in time; name a shorter time by --within";
    let mut open = snapshots.payments.query(OPEN, &[&from, &to, &wanted], failed).await?;
    // Of several shards; each has its rows in this order.
    open.sort_by_key(|LocatedRow { row, .. }| (row.get::<_, Timestamp>(6), row.get::<_, Uuid>(0)));
    let more = open.len() > limit;
    open.truncate(limit);
    let ids: Vec<Uuid> = open.iter().map(|payment| payment.row.get(0)).collect();
    let users: Vec<Uuid> = open.iter().map(|payment| payment.row.get(1)).collect();
    // A later phase replaces an earlier one.
    let entries = snapshots.balance.query(ENTRIES, &[&users, &ids], "ledger").await?;
    let charges = snapshots.processor.query(CHARGES, &[&ids], "charges").await?;
    let attempts = snapshots.processor.query(ATTEMPTS, &[&ids], "charge_attempts").await?;
    let related = Related {
        entries: by_payment(entries),
        charges: by_payment(charges),
        attempts: by_payment(attempts),
        parked: parked(&snapshots, &ids).await?,
    };
    let payments = open.iter().filter_map(|payment| related.payment(payment)).collect();
    let mut slots = Vec::new();
    for of in snapshots.services() {
        let rows = of.query(SLOTS, &[], "pg_replication_slots").await?;
        slots.extend(rows.iter().map(|located| slot(of.service, located)));
    }
    Ok(Report { payments, more, slots, left_out: snapshots.left_out() })
}

fn slot(database: &'static str, LocatedRow { shard, row }: &LocatedRow<'_>) -> Slot {
    let shard = shard.map(str::to_owned);
    Slot { database, shard, name: row.get(0), active: row.get(1), lag_bytes: row.get(2) }
}

/// Rows by the payment in their first column.
fn by_payment(rows: Vec<LocatedRow<'_>>) -> HashMap<Uuid, Row> {
    rows.into_iter().map(|located| (located.row.get(0), located.row)).collect()
}

/// The database and the row of a parked message about each payment.
async fn parked<'a>(
    snapshots: &'a SagaSnapshots<'_>,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, (&'static str, LocatedRow<'a>)>> {
    let names: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let mut parked = HashMap::new();
    for of in snapshots.services() {
        for located in of.query(OPEN_BY_PAYMENT, &[&names], "parked").await? {
            let payment_id: Uuid = located.row.get::<_, String>(0).parse().context("a payment id")?;
            parked.entry(payment_id).or_insert((of.service, located));
        }
    }
    Ok(parked)
}

/// The last rows about the payments, by payment.
struct Related<'a> {
    entries: HashMap<Uuid, Row>,
    charges: HashMap<Uuid, Row>,
    attempts: HashMap<Uuid, Row>,
    parked: HashMap<Uuid, (&'static str, LocatedRow<'a>)>,
}

impl Related<'_> {
    /// `None` for a payment that waits for nothing.
    fn payment(&self, LocatedRow { shard, row: payment }: &LocatedRow<'_>) -> Option<StuckPayment> {
        let payment_id: Uuid = payment.get(0);
        let (entry, charge) = (self.entries.get(&payment_id), self.charges.get(&payment_id));
        let (attempt, parked) = (self.attempts.get(&payment_id), self.parked.get(&payment_id));
        let terms = |row: &Row| -> (Uuid, String, i64) { (row.get(1), row.get(2), row.get(3)) };
        let facts = Facts {
            status: payment.get(4),
            last_entry: entry.map(|row| row.get(1)),
            charge: charge.map(|row| row.get(4)),
            charge_agrees: charge.is_none_or(|row| terms(row) == terms(payment)),
            parked_in: parked.map(|(database, _)| *database),
        };
        let wait = progress::wait(&facts, &|_| None)?;
        let times = [
            Some(payment.get(6)),
            payment.get(7),
            entry.map(|row| row.get(2)),
            charge.map(|row| row.get(6)),
            attempt.map(|row| row.get(4)),
        ];
        let last_error = parked.map(|(database, LocatedRow { shard, row })| {
            let (id, reason): (&str, &str) = (row.get(1), row.get(2));
            format!("parked in {} as {id}: {reason}", databases::name(database, *shard))
        });
        let attempted = || attempt.map(attempt_error);
        let charged = || charge.and_then(|row| row.get::<_, Option<String>>(5));
        Some(StuckPayment {
            payment_id,
            shard: shard.map(str::to_owned),
            user_id: payment.get(1),
            amount: payment.get(3),
            status: payment.get(4),
            accepted_at: payment.get(6),
            service: wait.service,
            waits_for: wait.step,
            since: times.into_iter().flatten().max().unwrap_or_else(|| payment.get(6)),
            last_error: last_error.or_else(attempted).or_else(charged),
        })
    }
}

fn attempt_error(row: &Row) -> String {
    let (kind, outcome, detail): (&str, &str, Option<&str>) = (row.get(1), row.get(2), row.get(3));
    match detail {
        Some(detail) => format!("{kind}: {outcome} ({detail})"),
        None => format!("{kind}: {outcome}"),
    }
}

fn text(report: &Report) -> String {
    let now = Timestamp::now();
    let header = ["PAYMENT", "STATUS", "AMOUNT", "AGE", "SERVICE", "SINCE", "WAITS FOR", "LAST ERROR"];
    let rows = report.payments.iter().map(|payment| {
        let error = payment.last_error.as_deref().map(|error| listing::short(error, REASON_CHARS_MAX));
        let row = [
            payment.payment_id.to_string(),
            payment.status.clone(),
            payment.amount.to_string(),
            describe(now.duration_since(payment.accepted_at)),
            payment.service.to_owned(),
            describe(now.duration_since(payment.since)),
            payment.waits_for.clone(),
            listing::optional(error.as_deref()),
        ];
        (payment.shard.as_deref(), row)
    });
    let mut text = match report.payments.len() {
        0 => "No payment is stuck.".to_owned(),
        1 => format!("{}\n\n1 payment has not ended.", listing::located(header, rows)),
        count => format!("{}\n\n{count} payments have not ended.", listing::located(header, rows)),
    };
    if report.more {
        text.push_str(" There are more: raise --limit.");
    }
    for slot in report.slots.iter().filter(|slot| !slot.active) {
        text.push_str(&format!(
            "\nNo relay reads slot {} of the {} database; {} bytes of WAL wait.",
            slot.name,
            databases::name(slot.database, slot.shard.as_deref()),
            slot.lag_bytes
        ));
    }
    if let Some(left_out) = &report.left_out {
        text.push_str(&format!("\n{left_out}"));
    }
    text
}
