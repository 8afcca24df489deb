//! Reads the rows of some payments, movements and accounts, and the payments of a time. It writes nothing.
//!
//! * Every row is reached by primary key or by the index of a user's movements, so a pass costs what it examines. The payments
//!   of a time are reached by the block range index of `initiated_at`.
//! * Each database is read in one snapshot that can only read, as a role that can only read.
//! * Payments are read before the ledger before charges: an effect before its cause.

use anyhow::{Context, Result};
use coroctl::audit::read::rows::{self, PaymentKeys};
use coroctl::audit::statuses::EntryKind;
use jiff::Timestamp;
use saga::postgres::{self, Client, Pool, Transaction};
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

use crate::SERVICE;
use crate::checks::{Account, Balances, Key, Movement, Rows};
use crate::config::Databases;

/// One pass at a time, and who asks whether the auditor is ready.
const CONNECTIONS_MAX: usize = 2;

// $1: users, $2: payments or deposits. Each movement of theirs, and the balances after the one before it.
const MOVEMENTS: &str = "
    select l.user_id, l.payment_id, l.kind, l.amount, l.entry_no, l.available_after, l.held_after,
           b.available_after, b.held_after
      from unnest($1::uuid[], $2::uuid[]) as k (user_id, payment_id)
      join ledger l on l.user_id = k.user_id and l.payment_id = k.payment_id and l.entry_no is not null
      left join ledger b on b.user_id = l.user_id and b.entry_no = l.entry_no - 1 and b.entry_no is not null";

// $1: users. Each account, the balances after its last movement, and the number of a movement after that.
const ACCOUNTS: &str = "
    select k.user_id, a.available, a.held, a.last_entry_no, l.available_after, l.held_after, n.entry_no
      from unnest($1::uuid[]) as k (user_id)
      left join accounts a on a.user_id = k.user_id
      left join ledger l on l.user_id = k.user_id and l.entry_no = a.last_entry_no and l.entry_no is not null
      left join lateral (
           select entry_no from ledger
            where user_id = k.user_id and entry_no > coalesce(a.last_entry_no, 0) and entry_no is not null
            order by entry_no limit 1) n on true";

const NEXT_ACCOUNTS: &str = "select user_id from accounts where user_id > $1 order by user_id limit $2";

const PAYMENTS_OF_TIME: &str =
    "select user_id, payment_id from payments where initiated_at > $1 and initiated_at <= $2";

/// The rows of one examination.
#[derive(Debug, Default)]
pub struct Examined {
    pub rows: Rows,
    pub movements: Vec<Movement>,
    pub accounts: Vec<Account>,
}

/// The three databases of the saga.
#[derive(Clone)]
pub struct Store {
    payments: Pool,
    balance: Pool,
    processor: Pool,
}

impl Store {
    /// # Errors
    /// When a URL cannot be used.
    pub fn new(databases: &Databases) -> Result<Self> {
        let pool = |url: &str| postgres::pool(url, CONNECTIONS_MAX, SERVICE);
        Ok(Self {
            payments: pool(&databases.payments_database_url)?,
            balance: pool(&databases.balance_database_url)?,
            processor: pool(&databases.processor_database_url)?,
        })
    }

    /// One round trip to each database.
    ///
    /// # Errors
    /// When one does not answer; the text says which.
    pub async fn reachable(&self) -> Result<(), String> {
        for (name, pool) in
            [("payments", &self.payments), ("balance", &self.balance), ("processor", &self.processor)]
        {
            postgres::reachable(pool).await.map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(())
    }

    /// Reads the rows of these payments and deposits, and these accounts.
    ///
    /// # Errors
    /// When a database failed, or holds a value that this version does not know.
    pub async fn examine(&self, keys: &[Key], users: &[Uuid]) -> Result<Examined> {
        let (of_users, ids): (Vec<Uuid>, Vec<Uuid>) = keys.iter().copied().unzip();
        let keys = PaymentKeys { users: of_users, ids };
        let mut examined = Examined::default();
        if !keys.ids.is_empty() {
            let mut client = client(&self.payments, "payments").await?;
            let snapshot = snapshot(&mut client).await?;
            examined.rows.payments =
                rows::payments_of(&*snapshot, &keys).await.context("payments database")?;
            snapshot.commit().await?;
        }
        let mut client = client(&self.balance, "balance").await?;
        let snapshot = snapshot(&mut client).await?;
        if !keys.ids.is_empty() {
            examined.rows.ledger = rows::ledger_of(&*snapshot, &keys).await.context("balance database")?;
            let found = snapshot.query(MOVEMENTS, &[&keys.users, &keys.ids]).await.context("movements")?;
            examined.movements = found.iter().map(movement).collect::<Result<_>>()?;
        }
        let found = snapshot.query(ACCOUNTS, &[&users]).await.context("accounts")?;
        examined.accounts = found.iter().map(account).collect();
        snapshot.commit().await?;
        if !keys.ids.is_empty() {
            let client = self::client(&self.processor, "processor").await?;
            examined.rows.charges =
                rows::charges_of(&**client, &keys.ids).await.context("processor database")?;
        }
        Ok(examined)
    }

    /// The next accounts after this user, in the order of their ids.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn accounts_after(&self, user_id: Uuid, limit: u32) -> Result<Vec<Uuid>> {
        let client = client(&self.balance, "balance").await?;
        let found = client.query(NEXT_ACCOUNTS, &[&user_id, &i64::from(limit)]).await.context("accounts")?;
        Ok(found.iter().map(|row| row.get(0)).collect())
    }

    /// The payments that were accepted after `from` and up to `to`.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn payments_of_time(&self, from: Timestamp, to: Timestamp) -> Result<Vec<Key>> {
        let client = client(&self.payments, "payments").await?;
        let found = client.query(PAYMENTS_OF_TIME, &[&from, &to]).await.context("payments of a time")?;
        Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

async fn client(pool: &Pool, name: &str) -> Result<Client> {
    pool.get().await.with_context(|| format!("no connection to the {name} database"))
}

async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    transaction.read_only(true).start().await.context("cannot begin a snapshot")
}

fn balances(row: &Row, index: usize) -> Option<Balances> {
    let (available, held): (Option<i64>, Option<i64>) = (row.get(index), row.get(index + 1));
    available.zip(held).map(|(available, held)| Balances { available, held })
}

fn movement(row: &Row) -> Result<Movement> {
    let kind: &str = row.get(2);
    Ok(Movement {
        key: (row.get(0), row.get(1)),
        kind: EntryKind::parse(kind).with_context(|| format!("ledger kind {kind}"))?,
        amount: row.get(3),
        entry_no: row.get(4),
        after: Balances { available: row.get(5), held: row.get(6) },
        before: balances(row, 7),
    })
}

fn account(row: &Row) -> Account {
    let number: Option<i64> = row.get(3);
    Account {
        user_id: row.get(0),
        account: balances(row, 1).zip(number),
        last: balances(row, 4),
        beyond: row.get(6),
    }
}
