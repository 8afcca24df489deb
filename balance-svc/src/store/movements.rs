//! Reads a user's movements in pages, newest first.
//!
//! * A page is a walk through one index, whatever the length of the ledger.
//! * A page names its place by entry_no, so that entries that come meanwhile move nothing onto or off it.
//! * The numbers and balances are columns of the ledger: `sql/balance/V5__movements.sql` says why they are no table.

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::Parameters;
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

/// A ledger entry that moved money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    pub entry_no: i64,
    pub kind: String,
    /// Minor units.
    pub amount: i64,
    /// The payment; of a deposit, the deposit.
    pub payment_id: Uuid,
    pub service_id: Option<String>,
    /// The reason of a release.
    pub reason: Option<String>,
    pub at: Timestamp,
    pub available_after: i64,
    pub held_after: i64,
}

/// One page of movements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub movements: Vec<Movement>,
    /// The entry_no that the next page ends before; `None` on the last page.
    pub next: Option<i64>,
}

const PAGE: &str = "
    select entry_no, kind, amount, payment_id, service_id, reason, created_at, available_after, held_after
      from ledger where user_id = $1 and entry_no < $2 and require_ownership($4, $5)
     order by entry_no desc limit $3";

/// The newest `limit` movements of a user whose entry_no is below `before`.
pub async fn movements(
    owned: &Ownership,
    user_id: Uuid,
    before: Option<i64>,
    limit: u64,
) -> anyhow::Result<Page> {
    let before = before.unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).context("a page has fewer entries")?;
    let parameters: Parameters<'_> = &[&user_id, &before, &limit, &owned.buckets, &owned.epochs];
    let rows = owned.query(PAGE, parameters, "cannot read movements").await?;
    let movements: Vec<Movement> = rows.iter().map(movement).collect();
    // Numbers begin at 1 and have no gaps, so the last one shown says whether there are more.
    let next = movements.last().map(|movement| movement.entry_no).filter(|entry_no| *entry_no > 1);
    Ok(Page { movements, next })
}

fn movement(row: &Row) -> Movement {
    Movement {
        entry_no: row.get(0),
        kind: row.get(1),
        amount: row.get(2),
        payment_id: row.get(3),
        service_id: row.get(4),
        reason: row.get(5),
        at: row.get(6),
        available_after: row.get(7),
        held_after: row.get(8),
    }
}
