//! Reads the rows of some payments, movements and accounts, and the payments of a time. It writes nothing.
//!
//! * Every row is reached by primary key or by the index of a user's movements, so a pass costs what it examines. The payments
//!   of a time are reached by the block range index of `initiated_at`.
//! * Each database is read in one snapshot that can only read, as a role that can only read.
//! * Payments are read before the ledger before charges: an effect before its cause.
//! * Of several shards each is asked about the users that it owns in its snapshot. Users whom none owns are left out, and named.

use std::collections::HashSet;

use anyhow::{Context, Result};
use coroctl::audit::read::rows::{self, PaymentKeys};
use coroctl::audit::statuses::EntryKind;
use coroctl::shard::connections::owned_buckets;
use jiff::Timestamp;
use saga::shards::bucket::{BUCKETS, Bucket};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::checks::{Account, Balances, Key, Movement, Rows};
use crate::config::Databases;
use crate::databases::{Owners, Positions, ServiceDatabases, snapshot};

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

const NEXT_ACCOUNTS: &str = "select user_id from {accounts} a where user_id > $1 order by user_id limit $2";

const PAYMENTS_OF_TIME: &str = "select user_id, payment_id, initiated_at from {payments} p where initiated_at > $1 and initiated_at <= $2";

/// The rows of one examination.
#[derive(Debug, Default)]
pub struct Examined {
    pub rows: Rows,
    pub movements: Vec<Movement>,
    pub accounts: Vec<Account>,
    /// Users whose bucket no shard of some service owns: nothing of theirs is here.
    pub left_out: HashSet<Uuid>,
}

impl Examined {
    /// Leaves out the users whom a service does not have.
    fn leave_out(&mut self, keys: &[Key], users: &[Uuid], owners: &Owners) {
        let concerned = keys.iter().map(|(user, _)| user).chain(users);
        self.left_out.extend(concerned.filter(|user| owners.is_undecided(**user)));
    }

    /// Without anything about those who were left out.
    fn without_left_out(mut self, keys: &[Key]) -> Self {
        let ids: HashSet<Uuid> =
            keys.iter().filter(|(user, _)| self.left_out.contains(user)).map(|(_, id)| *id).collect();
        self.rows.payments.rows.retain(|id, _| !ids.contains(id));
        self.rows.ledger.rows.retain(|id, _| !ids.contains(id));
        self.rows.charges.rows.retain(|id, _| !ids.contains(id));
        self.movements.retain(|movement| !self.left_out.contains(&movement.key.0));
        self.accounts.retain(|account| !self.left_out.contains(&account.user_id));
        self
    }
}

/// The payments of a time on one database.
#[derive(Debug, Default)]
pub struct Look {
    /// Each with the time at which it was accepted.
    pub payments: Vec<(Key, Timestamp)>,
    /// The buckets whose payments were all seen.
    pub buckets: Vec<Bucket>,
}

/// The databases of the saga.
#[derive(Clone)]
pub struct Store {
    payments: ServiceDatabases,
    balance: ServiceDatabases,
    processor: ServiceDatabases,
}

impl Store {
    /// # Errors
    /// When a URL cannot be used, or a list of shards is malformed.
    pub fn new(databases: &Databases) -> Result<Self> {
        Ok(Self {
            payments: ServiceDatabases::new("payments", &databases.payments_database_url)?,
            balance: ServiceDatabases::new("balance", &databases.balance_database_url)?,
            processor: ServiceDatabases::new("processor", &databases.processor_database_url)?,
        })
    }

    fn services(&self) -> [&ServiceDatabases; 3] {
        [&self.payments, &self.balance, &self.processor]
    }

    /// One round trip to each database.
    ///
    /// # Errors
    /// When one does not answer; the text says which.
    pub async fn reachable(&self) -> Result<(), String> {
        for of in self.services() {
            of.reachable().await?;
        }
        Ok(())
    }

    /// Where the shards of each service with several are.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn positions(&self) -> Result<Vec<Positions>> {
        let mut positions = Vec::new();
        for of in self.services() {
            positions.extend(of.positions().await.with_context(|| of.service)?);
        }
        Ok(positions)
    }

    /// The number of payments databases, and of balance databases.
    pub fn counts(&self) -> (usize, usize) {
        (self.payments.count(), self.balance.count())
    }

    /// Reads the rows of these payments and deposits, and these accounts.
    ///
    /// # Errors
    /// When a database failed, or holds a value that this version does not know.
    pub async fn examine(&self, keys: &[Key], users: &[Uuid]) -> Result<Examined> {
        let mut examined = Examined::default();
        if !keys.is_empty() {
            self.read_payments(keys, &mut examined).await?;
        }
        self.read_balance(keys, users, &mut examined).await?;
        if !keys.is_empty() {
            self.read_charges(keys, &mut examined).await?;
        }
        Ok(examined.without_left_out(keys))
    }

    async fn read_payments(&self, keys: &[Key], examined: &mut Examined) -> Result<()> {
        let mut clients = self.payments.clients().await?;
        let (snapshots, owners) = self.payments.snapshots(&mut clients).await?;
        examined.leave_out(keys, &[], &owners);
        for (at, snapshot) in snapshots.into_iter().enumerate() {
            let keys = keys_of(keys, &owners, at);
            let read = &mut examined.rows.payments;
            rows::payments_of(&*snapshot, &keys, read).await.with_context(|| owners.name(at))?;
            snapshot.commit().await?;
        }
        Ok(())
    }

    async fn read_balance(&self, keys: &[Key], users: &[Uuid], examined: &mut Examined) -> Result<()> {
        let mut clients = self.balance.clients().await?;
        let (snapshots, owners) = self.balance.snapshots(&mut clients).await?;
        examined.leave_out(keys, users, &owners);
        for (at, snapshot) in snapshots.into_iter().enumerate() {
            let keys = keys_of(keys, &owners, at);
            if !keys.ids.is_empty() {
                let read = &mut examined.rows.ledger;
                rows::ledger_of(&*snapshot, &keys, read).await.with_context(|| owners.name(at))?;
                let found =
                    snapshot.query(MOVEMENTS, &[&keys.users, &keys.ids]).await.context("movements")?;
                let found: Vec<Movement> = found.iter().map(movement).collect::<Result<_>>()?;
                examined.movements.extend(found);
            }
            let users: Vec<Uuid> = users.iter().copied().filter(|user| owners.has(at, *user)).collect();
            let found = snapshot.query(ACCOUNTS, &[&users]).await.context("accounts")?;
            examined.accounts.extend(found.iter().map(account));
            snapshot.commit().await?;
        }
        Ok(())
    }

    /// A charge may name another user than the payment does, so each shard is asked about all of them.
    async fn read_charges(&self, keys: &[Key], examined: &mut Examined) -> Result<()> {
        let ids: Vec<Uuid> = keys.iter().map(|(_, id)| *id).collect();
        let mut clients = self.processor.clients().await?;
        let (snapshots, owners) = self.processor.snapshots(&mut clients).await?;
        examined.leave_out(keys, &[], &owners);
        for (at, snapshot) in snapshots.into_iter().enumerate() {
            let read = &mut examined.rows.charges;
            let found = rows::charges_of(&*snapshot, &owners.rows[at], &ids, read).await;
            found.with_context(|| owners.name(at))?;
            snapshot.commit().await?;
        }
        Ok(())
    }

    /// The next accounts of a balance database after this user, in the order of their ids.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn accounts_after(&self, database: usize, user_id: Uuid, limit: u32) -> Result<Vec<Uuid>> {
        let client = self.balance.client(database).await?;
        let statement = self.balance.rows(database).statement(NEXT_ACCOUNTS);
        let found = client.query(&statement, &[&user_id, &i64::from(limit)]).await.context("accounts")?;
        Ok(found.iter().map(|row| row.get(0)).collect())
    }

    /// The payments of a payments database that were accepted after `from` and up to `to`, of those of these buckets that it owns.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn payments_of_time(
        &self,
        database: usize,
        buckets: &[Bucket],
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Look> {
        let rows = self.payments.rows(database);
        let mut client = self.payments.client(database).await?;
        let snapshot = snapshot(&mut client).await?;
        let mut seen: Vec<Bucket> = buckets.to_vec();
        if rows.shard().is_some() {
            let claims = owned_buckets(&*snapshot).await.context("owned_buckets")?;
            seen.retain(|bucket| claims[bucket.index()].owned);
        }
        let statement = rows.statement(PAYMENTS_OF_TIME);
        let found = snapshot.query(&statement, &[&from, &to]).await.context("payments of a time")?;
        snapshot.commit().await?;
        let payment = |row: &Row| -> (Key, Timestamp) { ((row.get(0), row.get(1)), row.get(2)) };
        let mut is_seen = vec![false; BUCKETS];
        seen.iter().for_each(|bucket| is_seen[bucket.index()] = true);
        let payments = found.iter().map(payment).filter(|((user, _), _)| is_seen[Bucket::of(*user).index()]);
        Ok(Look { payments: payments.collect(), buckets: seen })
    }
}

/// The keys of the users whose rows this database has.
fn keys_of(keys: &[Key], owners: &Owners, database: usize) -> PaymentKeys {
    let of = keys.iter().copied().filter(|(user, _)| owners.has(database, *user));
    let (users, ids) = of.unzip();
    PaymentKeys { users, ids }
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
