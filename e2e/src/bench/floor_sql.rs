//! Makes the saga's own commits and row changes for a batch of payments: the rows of each service, in as few
//! statements as possible.

use anyhow::{Result, ensure};
use saga::postgres::Client;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::caller::{AMOUNT, CLIENT_NUMBER};

pub const SERVICE_ID: &str = "electricity";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

const ACCEPT: &str = "
    insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id,
                          amount, traceparent, expires_at)
    select n.user_id, n.payment_id, n.idempotency_key, n.fingerprint, n.client_number, n.service_id,
           n.amount, n.traceparent, now() + interval '15 minutes'
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::text[])
         as n (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, traceparent)
    where exists (select from services s where s.service_id = n.service_id and s.enabled)
    on conflict on constraint payments_idempotency_key do nothing
    returning payment_id, initiated_at, expires_at";

const LOCK: &str = "
    select user_id, available from accounts where user_id = any($1) order by user_id for no key update";

const HOLD: &str = "
    with entry as (
        insert into ledger (user_id, payment_id, phase, kind, amount, service_id, traceparent, entry_no,
                            available_after, held_after)
        select n.user_id, n.payment_id, 1, 'hold', n.amount, n.service_id, n.traceparent,
               a.last_entry_no + row_number() over so_far, a.available - sum(n.amount) over so_far,
               a.held + sum(n.amount) over so_far
        from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[]) with ordinality
             as n (user_id, payment_id, amount, service_id, traceparent, place)
        join accounts a on a.user_id = n.user_id
        window so_far as (partition by n.user_id order by n.place rows unbounded preceding)
        on conflict on constraint ledger_pkey do nothing
        returning user_id, amount
    ), delta as (
        select user_id, sum(amount)::bigint as amount, count(*) as entries from entry group by user_id
    ), moved as (
        update accounts a set available = a.available - d.amount, held = a.held + d.amount,
                              last_entry_no = a.last_entry_no + d.entries
        from delta d where a.user_id = d.user_id
    )
    select count(*) from entry";

// No predicate on `phase`: on a young table it would tempt the planner into reading the index from end to end,
// and the plan is kept.
const CAPTURE: &str = "
    with entry as (
        insert into ledger (user_id, payment_id, phase, kind, amount, service_id, traceparent, entry_no,
                            available_after, held_after)
        select h.user_id, h.payment_id, 2, 'capture', h.amount, h.service_id, h.traceparent,
               a.last_entry_no + row_number() over so_far, a.available, a.held - sum(h.amount) over so_far
        from unnest($1::uuid[], $2::uuid[]) with ordinality as n (user_id, payment_id, place)
        join ledger h on h.user_id = n.user_id and h.payment_id = n.payment_id
        join accounts a on a.user_id = n.user_id
        where h.kind = 'hold'
        window so_far as (partition by n.user_id order by n.place rows unbounded preceding)
        on conflict on constraint ledger_pkey do nothing
        returning user_id, amount
    ), delta as (
        select user_id, sum(amount)::bigint as amount, count(*) as entries from entry group by user_id
    ), moved as (
        update accounts a set held = a.held - d.amount, last_entry_no = a.last_entry_no + d.entries
        from delta d where a.user_id = d.user_id
    )
    select count(*) from entry";

const AUTHORIZE: &str = "
    update payments p
    set status = 'authorized', event = 'authorized', version = p.version + 1, authorized_at = now()
    from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
    where p.user_id = n.user_id and p.payment_id = n.payment_id and p.status = 'initiated'";

const COMPLETE: &str = "
    update payments p
    set status = 'completed', event = 'completed', version = p.version + 1, completed_at = now()
    from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
    where p.user_id = n.user_id and p.payment_id = n.payment_id and p.status = 'authorized'";

const INTENT: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
                         status, lease_until)
    select n.payment_id, n.user_id, n.client_number, n.service_id, n.amount, n.traceparent,
           now() + interval '15 minutes', 'calling', now() + interval '30 seconds'
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[])
         as n (payment_id, user_id, client_number, service_id, amount, traceparent)
    on conflict do nothing";

const OUTCOME: &str = "
    update charges c
    set status = 'succeeded', version = c.version + 1, provider_reference = n.reference, decided_at = now()
    from unnest($1::uuid[], $2::text[]) as n (payment_id, reference)
    where c.payment_id = n.payment_id and c.status = 'calling' and c.attempt = 1";

type Columns<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Payments that go through the saga together.
pub struct Batch {
    users: Vec<Uuid>,
    payments: Vec<Uuid>,
    accounts: Vec<Uuid>,
    keys: Vec<String>,
    references: Vec<String>,
    fingerprints: Vec<Vec<u8>>,
    numbers: Vec<&'static str>,
    services: Vec<&'static str>,
    traces: Vec<&'static str>,
    amounts: Vec<i64>,
}

impl Batch {
    /// One new payment for each of `users`.
    pub fn new(users: Vec<Uuid>) -> Self {
        let size = users.len();
        let mut accounts = users.clone();
        accounts.sort_unstable();
        accounts.dedup();
        let payments: Vec<Uuid> = users.iter().map(|_| Uuid::now_v7()).collect();
        Self {
            accounts,
            keys: users.iter().map(|_| Uuid::new_v4().to_string()).collect(),
            references: payments.iter().map(|id| format!("ch_{:016x}", id.as_u64_pair().1)).collect(),
            fingerprints: payments
                .iter()
                .map(|id| [id.as_bytes().as_slice(), id.as_bytes()].concat())
                .collect(),
            numbers: vec![CLIENT_NUMBER; size],
            services: vec![SERVICE_ID; size],
            traces: vec![TRACEPARENT; size],
            amounts: vec![AMOUNT; size],
            users,
            payments,
        }
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    pub async fn accept(&self, payments: &Client) -> Result<()> {
        let statement = payments.prepare_cached(ACCEPT).await?;
        let accepted = payments
            .query(
                &statement,
                &[
                    &self.users,
                    &self.payments,
                    &self.keys,
                    &self.fingerprints,
                    &self.numbers,
                    &self.services,
                    &self.amounts,
                    &self.traces,
                ],
            )
            .await?;
        self.all("accepted", accepted.len() as u64)
    }

    pub async fn hold(&self, balance: &Client) -> Result<()> {
        let (lock, hold) = (balance.prepare_cached(LOCK).await?, balance.prepare_cached(HOLD).await?);
        let held: Columns<'_> = &[&self.users, &self.payments, &self.amounts, &self.services, &self.traces];
        self.all("held", self.locked(balance, &lock, &hold, held).await?)
    }

    pub async fn authorize(&self, payments: &Client) -> Result<()> {
        let statement = payments.prepare_cached(AUTHORIZE).await?;
        self.all("authorized", payments.execute(&statement, &[&self.users, &self.payments]).await?)
    }

    pub async fn intend(&self, processor: &Client) -> Result<()> {
        let statement = processor.prepare_cached(INTENT).await?;
        let columns: Columns<'_> =
            &[&self.payments, &self.users, &self.numbers, &self.services, &self.amounts, &self.traces];
        self.all("intended", processor.execute(&statement, columns).await?)
    }

    pub async fn settle(&self, processor: &Client) -> Result<()> {
        let statement = processor.prepare_cached(OUTCOME).await?;
        self.all("charged", processor.execute(&statement, &[&self.payments, &self.references]).await?)
    }

    pub async fn capture(&self, balance: &Client) -> Result<()> {
        let (lock, capture) = (balance.prepare_cached(LOCK).await?, balance.prepare_cached(CAPTURE).await?);
        let captured: Columns<'_> = &[&self.users, &self.payments];
        self.all("captured", self.locked(balance, &lock, &capture, captured).await?)
    }

    pub async fn complete(&self, payments: &Client) -> Result<()> {
        let statement = payments.prepare_cached(COMPLETE).await?;
        self.all("completed", payments.execute(&statement, &[&self.users, &self.payments]).await?)
    }

    /// One transaction: the accounts' locks, then the statement, which sees what it waited for.
    async fn locked(
        &self,
        balance: &Client,
        lock: &Statement,
        statement: &Statement,
        columns: Columns<'_>,
    ) -> Result<u64> {
        let accounts: Columns<'_> = &[&self.accounts];
        // Sent together: one wait for four statements.
        let (_, _, counted, _) = tokio::try_join!(
            balance.batch_execute("begin"),
            balance.query(lock, accounts),
            balance.query_one(statement, columns),
            balance.batch_execute("commit"),
        )?;
        Ok(counted.get::<_, i64>(0).unsigned_abs())
    }

    fn all(&self, done: &str, rows: u64) -> Result<()> {
        let expected = self.len() as u64;
        ensure!(rows == expected, "{rows} of {expected} payments were {done}");
        Ok(())
    }
}
