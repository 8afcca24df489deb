//! Reads how long payments wait for their holds.

use std::time::Duration;

use saga::postgres::Parameters;
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

/// What has become of the hold of one payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub payment_id: Uuid,
    /// balance-svc has answered: there is a hold, or a rejection.
    pub is_answered: bool,
    /// From the acceptance to the answer; without one, until now. By the database's clock.
    pub delay: Duration,
}

// A payment that was answered has one of the two times; what follows its hold does not count.
const HOLDS: &str = "
    select p.payment_id, p.status <> 'initiated',
           extract(epoch from coalesce(p.authorized_at, p.rejected_at, now()) - p.initiated_at)::float8
      from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
      join payments p using (user_id, payment_id)
     where require_ownership($3, $4)";

/// The holds of these payments, which are few: each is one look-up by primary key.
pub async fn holds(owned: &Ownership, payments: &[(Uuid, Uuid)]) -> anyhow::Result<Vec<Hold>> {
    let (users, ids): (Vec<Uuid>, Vec<Uuid>) = payments.iter().copied().unzip();
    let parameters: Parameters<'_> = &[&users, &ids, &owned.buckets, &owned.epochs];
    let rows = owned.query(HOLDS, parameters, "cannot look at holds").await?;
    Ok(rows.iter().map(hold).collect())
}

fn hold(row: &Row) -> Hold {
    // Negative after the database's clock was set back.
    let delay = Duration::try_from_secs_f64(row.get(2)).unwrap_or_default();
    Hold { payment_id: row.get(0), is_answered: row.get(1), delay }
}
