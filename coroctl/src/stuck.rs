//! `coroctl stuck`: payments that have not ended in time, each with the step that it waits for.
//!
//! * It reads the three databases, as a role that may only read: the payments by their age, and what belongs to them in sets.
//! * Whether an event is on Kafka it does not look up; it says which of the relay's slots is not read. `coroctl explain` says
//!   the rest about one payment.
//! * The oldest come first. `--limit` bounds them, and `--within` the time that is read.

#![allow(clippy::print_stdout, reason = "its report is its output")]

use std::collections::HashMap;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::age::{Age, describe};
use crate::databases::{DatabaseUrls, Databases};
use crate::listing;
use crate::parked::OPEN_BY_PAYMENT;
use crate::progress::{self, Facts};

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
}

/// Prints the payments.
///
/// # Errors
/// When a database does not answer.
pub async fn run(stuck: &Stuck) -> Result<()> {
    let databases = Databases::open(&stuck.databases).await?;
    let report = report(&databases, stuck, Timestamp::now()).await?;
    if stuck.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", text(&report));
    }
    Ok(())
}

// The range of `initiated_at` leads to blocks by its index; no index names a column that a step updates.
const OPEN: &str = "
    select payment_id, user_id, service_id, amount, status, reason, initiated_at, authorized_at
      from payments
     where initiated_at >= $1 and initiated_at < $2 and status in ('initiated', 'authorized')
     order by initiated_at, payment_id limit $3";

const ENTRIES: &str = "
    select payment_id, kind, created_at
      from unnest($1::uuid[], $2::uuid[]) as wanted (user_id, payment_id)
      join ledger using (user_id, payment_id)
     order by phase";

const CHARGES: &str = "
    select payment_id, user_id, service_id, amount, status, reason, coalesce(decided_at, created_at)
      from charges where payment_id = any($1)";

const ATTEMPTS: &str = "
    select distinct on (payment_id) payment_id, kind, outcome, detail, at
      from charge_attempts where payment_id = any($1)
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
    let mut open = databases
        .payments
        .query(OPEN, &[&from, &to, &wanted])
        .await
        .context("the payments database did not answer in time; name a shorter time by --within")?;
    let more = open.len() > limit;
    open.truncate(limit);
    let ids: Vec<Uuid> = open.iter().map(|row| row.get(0)).collect();
    let users: Vec<Uuid> = open.iter().map(|row| row.get(1)).collect();
    // A later phase replaces an earlier one.
    let entries = databases.balance.query(ENTRIES, &[&users, &ids]).await.context("ledger")?;
    let charges = databases.processor.query(CHARGES, &[&ids]).await.context("charges")?;
    let attempts = databases.processor.query(ATTEMPTS, &[&ids]).await.context("charge_attempts")?;
    let related = Related {
        entries: by_payment(entries),
        charges: by_payment(charges),
        attempts: by_payment(attempts),
        parked: parked(databases, &ids).await?,
    };
    let payments = open.iter().filter_map(|payment| related.payment(payment)).collect();
    let mut slots = Vec::new();
    for (database, client) in databases.named() {
        slots.extend(read_slots(database, client).await?);
    }
    Ok(Report { payments, more, slots })
}

async fn read_slots(database: &'static str, client: &Client) -> Result<Vec<Slot>> {
    let rows = client.query(SLOTS, &[]).await.context("pg_replication_slots")?;
    let slot = |row: &Row| Slot { database, name: row.get(0), active: row.get(1), lag_bytes: row.get(2) };
    Ok(rows.iter().map(slot).collect())
}

/// Rows by the payment in their first column.
fn by_payment(rows: Vec<Row>) -> HashMap<Uuid, Row> {
    rows.into_iter().map(|row| (row.get(0), row)).collect()
}

/// The database and the row of a parked message about each payment.
async fn parked(databases: &Databases, ids: &[Uuid]) -> Result<HashMap<Uuid, (&'static str, Row)>> {
    let names: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let mut parked = HashMap::new();
    for (database, client) in databases.named() {
        for row in client.query(OPEN_BY_PAYMENT, &[&names]).await.context("parked")? {
            let payment_id: Uuid = row.get::<_, String>(0).parse().context("a payment id")?;
            parked.entry(payment_id).or_insert((database, row));
        }
    }
    Ok(parked)
}

/// The last rows about the payments, by payment.
struct Related {
    entries: HashMap<Uuid, Row>,
    charges: HashMap<Uuid, Row>,
    attempts: HashMap<Uuid, Row>,
    parked: HashMap<Uuid, (&'static str, Row)>,
}

impl Related {
    /// `None` for a payment that waits for nothing.
    fn payment(&self, payment: &Row) -> Option<StuckPayment> {
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
        let last_error = parked.map(|(database, row)| {
            let (id, reason): (&str, &str) = (row.get(1), row.get(2));
            format!("parked in {database} as {id}: {reason}")
        });
        let attempted = || attempt.map(attempt_error);
        let charged = || charge.and_then(|row| row.get::<_, Option<String>>(5));
        Some(StuckPayment {
            payment_id,
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
        [
            payment.payment_id.to_string(),
            payment.status.clone(),
            payment.amount.to_string(),
            describe(now.duration_since(payment.accepted_at)),
            payment.service.to_owned(),
            describe(now.duration_since(payment.since)),
            payment.waits_for.clone(),
            listing::optional(error.as_deref()),
        ]
    });
    let mut text = match report.payments.len() {
        0 => "No payment is stuck.".to_owned(),
        1 => format!("{}\n\n1 payment has not ended.", listing::table(header, rows)),
        count => format!("{}\n\n{count} payments have not ended.", listing::table(header, rows)),
    };
    if report.more {
        text.push_str(" There are more: raise --limit.");
    }
    for slot in report.slots.iter().filter(|slot| !slot.active) {
        text.push_str(&format!(
            "\nNo relay reads slot {} of the {} database; {} bytes of WAL wait.",
            slot.name, slot.database, slot.lag_bytes
        ));
    }
    text
}
