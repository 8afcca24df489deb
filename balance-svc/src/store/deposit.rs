//! Credits deposits.
//!
//! * The account is locked first, as by a batch; the entry is written and the money moved by a later statement.
//! * The ledger's primary key says whether a deposit was credited before. It is answered so once the standbys have that entry
//!   ([`confirm_visible`]).

use anyhow::Context;
use saga::contract::AMOUNT_MAX;
use saga::postgres::confirm_visible;
use saga::shards::Ownership;
use tokio_postgres::error::DbError;
use uuid::Uuid;

/// The outcome of a deposit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deposit {
    Credited,
    /// The same deposit was credited before.
    Repeated,
    /// The key was used for another amount.
    KeyReused,
    /// The balance would exceed [`BALANCE_MAX`]; nothing was written.
    TooMuch,
}

/// The largest sum of available and held, in minor units.
pub const BALANCE_MAX: i64 = AMOUNT_MAX;

/// The constraint that keeps an account within [`BALANCE_MAX`], under the account's lock.
const BALANCE_MAX_CONSTRAINT: &str = "accounts_balance_max";

const CREATE: &str = "
    insert into accounts (user_id) select $1::uuid where require_ownership($2, $3) on conflict do nothing";

const LOCK: &str = "
    select from accounts where user_id = $1 and require_ownership($2, $3) for no key update";

const CREDIT: &str = "
    with entry as (
        insert into ledger (user_id, payment_id, phase, kind, amount, entry_no, available_after, held_after)
        select user_id, $2::uuid, 1, 'deposit', $3::bigint, last_entry_no + 1, available + $3::bigint, held
          from accounts where user_id = $1 and require_ownership($4, $5)
        on conflict on constraint ledger_pkey do nothing
        returning user_id, amount, entry_no
    )
    update accounts a set available = a.available + e.amount, last_entry_no = e.entry_no
      from entry e where a.user_id = e.user_id";

const READ: &str = "
    select amount from ledger where user_id = $1 and payment_id = $2 and phase = 1 and require_ownership($3, $4)";

/// Credits an account once per `deposit_id`; creates the account when the user has none.
pub async fn deposit(
    owned: &Ownership,
    user_id: Uuid,
    deposit_id: Uuid,
    amount: i64,
) -> anyhow::Result<Deposit> {
    let Ownership { buckets, epochs, .. } = owned;
    let mut client = owned.client().await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let create = transaction.prepare_cached(CREATE).await?;
    transaction.execute(&create, &[&user_id, buckets, epochs]).await.context("cannot create an account")?;
    let lock = transaction.prepare_cached(LOCK).await?;
    transaction.execute(&lock, &[&user_id, buckets, epochs]).await.context("cannot lock an account")?;
    let credit = transaction.prepare_cached(CREDIT).await?;
    let credited =
        match transaction.execute(&credit, &[&user_id, &deposit_id, &amount, buckets, epochs]).await {
            Err(error) if exceeds_balance_max(&error) => return Ok(Deposit::TooMuch),
            credited => credited.context("cannot credit the deposit")?,
        };
    if credited == 1 {
        transaction.commit().await.context("cannot commit")?;
        return Ok(Deposit::Credited);
    }
    let read = transaction.prepare_cached(READ).await?;
    let row = transaction.query_one(&read, &[&user_id, &deposit_id, buckets, epochs]).await;
    let before: i64 = row.context("cannot read deposit")?.get(0);
    if before != amount {
        return Ok(Deposit::KeyReused);
    }
    confirm_visible(&transaction).await?;
    transaction.commit().await.context("cannot commit")?;
    Ok(Deposit::Repeated)
}

fn exceeds_balance_max(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().and_then(DbError::constraint) == Some(BALANCE_MAX_CONSTRAINT)
}
