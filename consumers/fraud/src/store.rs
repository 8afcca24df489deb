//! All SQL of the fraud detector. Sets of rows come and go as JSON, which the statements take apart.
//!
//! * A batch is one transaction: insert the payments, read the windows that the new ones are in, insert the alerts.
//! * A payment that is read late changes the windows of later ones, so those are decided again. Windows only grow, so
//!   an alert that was raised stays true.

use std::collections::BTreeMap;

use anyhow::Context;
use saga::contract::Payment;
use saga::parked::{self, Parked};
use saga::postgres::Pool;
use serde_json::Value;
use tokio_postgres::types::Json;

use crate::saga::{Alert, Rules, Window, decide};

/// The effect of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Payments that were not seen before.
    pub new: usize,
    /// Alerts raised, by rule.
    pub alerts: BTreeMap<String, u64>,
}

const INSERT_PAYMENTS: &str = "
    with seen as (
        insert into payments (user_id, payment_id, amount, initiated_at)
        select distinct on (user_id, payment_id) user_id, payment_id, amount, initiated_at
          from jsonb_to_recordset($1)
               as p (user_id uuid, payment_id uuid, amount bigint, initiated_at timestamptz)
         order by user_id, payment_id
        on conflict on constraint payments_pkey do nothing
        returning user_id, initiated_at)
    select coalesce(jsonb_agg(to_jsonb(seen)), '[]'), count(*) from seen";

// $1: the new payments, $2: seconds of a window. Of each user: from the first new payment to a window after the last
// one. That frame is read with a window before it, so that every count is whole. A sum ends at 2^53-1, which JSON has
// exactly.
const WINDOWS: &str = "
    select to_jsonb(w)
      from (select user_id, min(initiated_at) as first, max(initiated_at) + $2 * interval '1 second' as last
              from jsonb_to_recordset($1) as n (user_id uuid, initiated_at timestamptz) group by user_id) n
     cross join lateral (
           select user_id, payment_id, amount, initiated_at, count(*) over w as payment_count,
                  least(sum(amount) over w, 9007199254740991)::bigint as payment_sum
             from payments
            where user_id = n.user_id
              and initiated_at between n.first - $2 * interval '1 second' and n.last
           window w as (order by initiated_at range between $2::double precision * interval '1 second' preceding
                                                        and current row)) w
     where w.initiated_at >= n.first";

const INSERT_ALERTS: &str = "
    with raised as (
        insert into alerts (user_id, payment_id, rule, amount, observed, threshold, initiated_at)
        select * from jsonb_to_recordset($1)
            as a (user_id uuid, payment_id uuid, rule text, amount bigint, observed bigint, threshold bigint,
                  initiated_at timestamptz)
        on conflict on constraint alerts_pkey do nothing
        returning rule)
    select rule, count(*) from raised group by rule";

/// Applies a batch and parks `unreadable`, in one transaction.
///
/// # Errors
/// When the database failed. Nothing was written then.
pub async fn apply(
    pool: &Pool,
    rules: &Rules,
    payments: &[&Payment],
    unreadable: &[Parked],
) -> anyhow::Result<Outcome> {
    let mut client = pool.get().await.context("no connection to the fraud database")?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let statement = transaction.prepare_cached(INSERT_PAYMENTS).await?;
    let row =
        transaction.query_one(&statement, &[&Json(payments)]).await.context("cannot insert payments")?;
    let (seen, new): (Value, i64) = (row.get(0), row.get(1));
    // A later statement, which sees what the first inserted.
    let statement = transaction.prepare_cached(WINDOWS).await?;
    let rows = transaction.query(&statement, &[&seen, &f64::from(rules.window_s)]).await;
    let mut alerts: Vec<Alert> = Vec::new();
    for row in rows.context("cannot read the windows")? {
        let Json(window): Json<Window> = row.try_get(0)?;
        alerts.extend(decide(rules, &window));
    }
    let statement = transaction.prepare_cached(INSERT_ALERTS).await?;
    let rows = transaction.query(&statement, &[&Json(&alerts)]).await.context("cannot insert alerts")?;
    parked::insert(&transaction, unreadable).await?;
    transaction.commit().await.context("cannot commit")?;
    let alerts = rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs())).collect();
    Ok(Outcome { new: usize::try_from(new)?, alerts })
}
