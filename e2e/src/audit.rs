//! Does everything add up? Each check is one statement about all rows there are, with what offends it.
//!
//! The names are those of the invariants in ARCHITECTURE.md. "At rest" checks hold when no payment is
//! under way; the others hold in every snapshot, also in the middle of a load.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::client;
use crate::databases::Databases;
use crate::stack::Stack;

/// One invariant, looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub name: &'static str,
    pub promise: &'static str,
    /// How many things were looked at.
    pub examined: u64,
    /// How many of them break the promise.
    pub violations: u64,
    /// The first of them.
    pub first: Option<String>,
}

/// A check inside one database: a query that yields (examined, violations, first offender).
struct SqlCheck {
    name: &'static str,
    promise: &'static str,
    sql: &'static str,
}

const BALANCE: &[SqlCheck] = &[
    SqlCheck {
        name: "M1",
        promise: "deposits = available + held + captured",
        sql: "with t as (select
                  (select coalesce(sum(amount), 0) from ledger where kind = 'deposit') as deposits,
                  (select coalesce(sum(available + held), 0) from accounts) as accounts,
                  (select coalesce(sum(amount), 0) from ledger where kind = 'capture') as captured)
              select (select count(*) from accounts), (deposits <> accounts + captured)::int::bigint,
                     format('deposits %s, accounts %s, captured %s', deposits, accounts, captured) from t",
    },
    SqlCheck {
        name: "M2",
        promise: "no balance below zero",
        sql: "select count(*), count(*) filter (where available < 0 or held < 0),
                     min(user_id::text) filter (where available < 0 or held < 0) from accounts",
    },
    SqlCheck {
        name: "M3",
        promise: "accounts are the fold of the ledger",
        sql: "with fold as (
                  select user_id,
                         sum(case kind when 'deposit' then amount when 'hold' then -amount when 'release' then amount else 0 end) as available,
                         sum(case kind when 'hold' then amount when 'capture' then -amount when 'release' then -amount else 0 end) as held
                  from ledger where kind <> 'rejection' group by user_id),
              both_sides as (
                  select coalesce(a.user_id, f.user_id) as user_id,
                         a.available is distinct from f.available or a.held is distinct from f.held as differs
                  from accounts a full join fold f using (user_id))
              select count(*), count(*) filter (where differs), min(user_id::text) filter (where differs) from both_sides",
    },
    SqlCheck {
        name: "M5",
        promise: "a hold is captured or released, once, by its own amount",
        sql: "select count(*), count(*) filter (where bad), min(payment_id::text) filter (where bad) from (
                  select s.payment_id, h.kind is distinct from 'hold' or h.amount <> s.amount as bad
                  from ledger s left join ledger h on h.user_id = s.user_id and h.payment_id = s.payment_id and h.phase = 1
                  where s.phase = 2) seconds",
    },
];

const PAYMENTS: &[SqlCheck] = &[
    SqlCheck {
        name: "S1",
        promise: "at rest every accepted payment has ended",
        sql: "select count(*), count(*) filter (where status in ('initiated', 'authorized')),
                     min(payment_id::text || ' is ' || status) filter (where status in ('initiated', 'authorized')) from payments",
    },
    SqlCheck {
        name: "S2",
        promise: "versions fit the states passed through",
        sql: "select count(*), count(*) filter (where bad), min(payment_id::text) filter (where bad) from (
                  select payment_id,
                         version < 1 + (authorized_at is not null)::int
                                     + (status in ('completed', 'rejected', 'failed', 'cancelled'))::int as bad
                  from payments) p",
    },
    SqlCheck {
        name: "S3",
        promise: "one payment per user and key",
        sql: "select count(*), count(*) filter (where n > 1), min(idempotency_key) filter (where n > 1) from (
                  select idempotency_key, count(*) as n from payments group by user_id, idempotency_key) k",
    },
];

/// Runs every check. Reads as the read-only role and the gateway's export; changes nothing.
pub async fn run(stack: &Stack) -> Result<Vec<Finding>> {
    let databases = Databases::connect(stack).await?;
    let mut findings = Vec::new();
    for check in BALANCE {
        findings.push(sql(&databases.balance, check).await?);
    }
    for check in PAYMENTS {
        findings.push(sql(&databases.payments, check).await?);
    }
    for (database, client) in [
        ("payments", &databases.payments),
        ("balance", &databases.balance),
        ("processor", &databases.processor),
    ] {
        findings.push(nothing_parked(database, client).await?);
    }
    let statuses = statuses(&databases.payments).await?;
    findings.push(live_holds(&databases.balance, &statuses).await?);
    let ledger = client::Client::new(stack)?.gateway_ledger().await?;
    findings.extend(gateway(&ledger, &statuses));
    Ok(findings)
}

async fn sql(client: &Client, check: &SqlCheck) -> Result<Finding> {
    let row = client.query_one(check.sql, &[]).await.with_context(|| check.name)?;
    let count = |index: usize| row.get::<_, i64>(index).unsigned_abs();
    let violations = count(1);
    Ok(Finding {
        name: check.name,
        promise: check.promise,
        examined: count(0),
        violations,
        first: row.get::<_, Option<String>>(2).filter(|_| violations > 0),
    })
}

async fn nothing_parked(database: &'static str, client: &Client) -> Result<Finding> {
    let query = "select count(*), min(parked_id || ': ' || reason) from parked";
    let row = client.query_one(query, &[]).await.context("parked")?;
    let violations = row.get::<_, i64>(0).unsigned_abs();
    let promise = match database {
        "payments" => "nothing parked in payments",
        "balance" => "nothing parked in balance",
        _ => "nothing parked in processor",
    };
    Ok(Finding { name: "T6", promise, examined: violations, violations, first: row.get(1) })
}

/// Amount and status of every payment.
type Statuses = HashMap<Uuid, (i64, String)>;

async fn statuses(payments: &Client) -> Result<Statuses> {
    let rows =
        payments.query("select payment_id, amount, status from payments", &[]).await.context("payments")?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

async fn live_holds(balance: &Client, statuses: &Statuses) -> Result<Finding> {
    let open = "select h.payment_id from ledger h where h.kind = 'hold'
                and not exists (select from ledger s where s.user_id = h.user_id and s.payment_id = h.payment_id and s.phase = 2)";
    let rows = balance.query(open, &[]).await.context("open holds")?;
    let offends = |id: &Uuid| {
        !statuses.get(id).is_some_and(|(_, status)| status == "authorized" || status == "initiated")
    };
    let offenders: Vec<Uuid> = rows.iter().map(|row| row.get(0)).filter(offends).collect();
    Ok(finding("M4", "no hold without a live payment", rows.len(), &offenders))
}

fn finding(name: &'static str, promise: &'static str, examined: usize, offenders: &[Uuid]) -> Finding {
    Finding {
        name,
        promise,
        examined: examined as u64,
        violations: offenders.len() as u64,
        first: offenders.first().map(Uuid::to_string),
    }
}

/// Payments against the gateway's own ledger.
fn gateway(ledger: &[Value], statuses: &Statuses) -> Vec<Finding> {
    let mut net: HashMap<Uuid, (i64, i64)> = HashMap::new();
    for line in ledger {
        let reference = line["reference"].as_str().and_then(|text| text.parse::<Uuid>().ok());
        let (Some(reference), Some(amount)) = (reference, line["amount"].as_i64()) else { continue };
        let sign = if line["kind"] == "void" { -1 } else { 1 };
        let entry = net.entry(reference).or_default();
        *entry = (entry.0 + sign, entry.1 + sign * amount);
    }
    let charged = |id: &Uuid| net.get(id).copied().unwrap_or_default();
    let completed = statuses.iter().filter(|(_, (_, status))| status == "completed");
    let wrong: Vec<Uuid> = completed
        .clone()
        .filter(|(id, (amount, _))| charged(id) != (1, *amount))
        .map(|(id, _)| *id)
        .collect();
    let ended = |status: &str| matches!(status, "failed" | "cancelled" | "rejected");
    let uncharged = statuses.iter().filter(|(_, (_, status))| ended(status));
    let charged_anyway: Vec<Uuid> =
        uncharged.clone().filter(|(id, _)| charged(id) != (0, 0)).map(|(id, _)| *id).collect();
    vec![
        finding("G1", "completed: charged exactly once, exactly that amount", completed.count(), &wrong),
        finding("G2", "failed, rejected, cancelled: not charged", uncharged.count(), &charged_anyway),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(reference: Uuid, amount: i64, kind: &str) -> Value {
        json!({"reference": reference, "amount": amount, "kind": kind, "at": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn a_double_charge_and_a_charge_of_a_failed_payment_are_found() {
        let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
        let statuses = Statuses::from([
            (ids[0], (5, "completed".into())),
            (ids[1], (5, "completed".into())),
            (ids[2], (5, "failed".into())),
            (ids[3], (5, "failed".into())),
        ]);
        let fine = [
            line(ids[0], 5, "charge"),
            line(ids[1], 5, "charge"),
            line(ids[3], 5, "charge"),
            line(ids[3], 5, "void"),
        ];
        assert!(gateway(&fine, &statuses).iter().all(|f| f.violations == 0));
        let mut bad = fine.to_vec();
        bad.push(line(ids[0], 5, "charge"));
        bad.push(line(ids[2], 5, "charge"));
        let found: Vec<_> = gateway(&bad, &statuses).iter().map(|f| f.first.clone().unwrap()).collect();
        assert_eq!(found, [ids[0].to_string(), ids[2].to_string()]);
    }
}
