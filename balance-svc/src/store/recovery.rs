//! Writes the entries that a restored ledger lacks.
//!
//! * A batch is one transaction: the accounts are locked, what is there is read, and a pure plan says what is lacking.
//! * An entry is written to the bytes of its event, its time included: emitted again, it is the same event.
//! * Entries and accounts are written by one statement, from the rows that were inserted, as by the service.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::{Context, ensure};
use saga::contract::LedgerEntry;
use saga::postgres::Transaction;
use saga::recovery::Emitted;
use saga::shards::Ownership;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::account::Account;
use crate::recovery::plan::{EntryKey, Lacking, Plan, Present, plan};

const LOCK: &str = "
    select user_id, available, held, last_entry_no
      from accounts where user_id = any($1) and require_ownership($2, $3)
     order by user_id for no key update";

const READ: &str = "
    select l.user_id, l.payment_id, l.phase, l.kind, l.amount, l.service_id, l.reason, l.traceparent, l.created_at
      from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
      join ledger l using (user_id, payment_id)
     where require_ownership($3, $4)";

const OPEN_ACCOUNTS: &str = "
    insert into accounts (user_id) select n.user_id from unnest($1::uuid[]) as n (user_id)
     where require_ownership($2, $3)
    on conflict do nothing";

// An account moves only if its entries continue its numbers, each of them inserted.
const INSERT: &str = "
    with entry as (
        insert into ledger (user_id, payment_id, phase, kind, amount, service_id, reason, traceparent, created_at,
                            entry_no, available_after, held_after)
        select * from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                             $8::text[], $9::timestamptz[], $10::bigint[], $11::bigint[], $12::bigint[])
         where require_ownership($13, $14)
        returning user_id, kind, amount, entry_no
    ), delta as (
        select user_id,
               sum(case kind when 'deposit' then amount when 'hold' then -amount when 'release' then amount else 0
                   end)::bigint as available,
               sum(case kind when 'deposit' then 0 when 'hold' then amount else -amount end)::bigint as held,
               count(*) as entries,
               max(entry_no) as last_entry_no
          from entry where kind <> 'rejection' group by user_id
    ), moved as (
        update accounts a
           set available = a.available + d.available, held = a.held + d.held, last_entry_no = d.last_entry_no
          from delta d where a.user_id = d.user_id and a.last_entry_no + d.entries = d.last_entry_no
        returning a.user_id
    )
    select (select count(*) from entry), (select count(*) from delta) - (select count(*) from moved)";

/// Plans a batch on what the ledger has, and writes what it lacks, in a transaction of the caller. `stopped`: users with an
/// entry that could not be written.
///
/// # Errors
/// When the database failed, or an account is not what its ledger says. Nothing may be committed then.
pub async fn recover<'a>(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    batch: &'a [Emitted<LedgerEntry>],
    stopped: &mut HashSet<Uuid>,
) -> anyhow::Result<Plan<'a>> {
    let Ownership { buckets, epochs, .. } = owned;
    let present = lock_and_read(transaction, owned, batch).await?;
    let plan = plan(batch, present, stopped);
    if !plan.new_accounts.is_empty() {
        let open = transaction.prepare_cached(OPEN_ACCOUNTS).await?;
        let opened = transaction.execute(&open, &[&plan.new_accounts, buckets, epochs]).await;
        opened.context("cannot make accounts")?;
    }
    insert(transaction, owned, &plan.lacking).await?;
    Ok(plan)
}

/// The accounts and the payments of a batch, read under the accounts' locks.
async fn lock_and_read(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    batch: &[Emitted<LedgerEntry>],
) -> anyhow::Result<Present> {
    let Ownership { buckets, epochs, .. } = owned;
    let users: BTreeSet<Uuid> = batch.iter().map(|emitted| emitted.body.user_id).collect();
    let users: Vec<Uuid> = users.into_iter().collect();
    let keys: BTreeSet<(Uuid, Uuid)> =
        batch.iter().map(|emitted| (emitted.body.user_id, emitted.body.payment_id)).collect();
    let (key_users, payments): (Vec<Uuid>, Vec<Uuid>) = keys.into_iter().unzip();
    let (lock, read) = (transaction.prepare_cached(LOCK).await?, transaction.prepare_cached(READ).await?);
    let accounts =
        transaction.query(&lock, &[&users, buckets, epochs]).await.context("cannot lock accounts")?;
    let entries = transaction.query(&read, &[&key_users, &payments, buckets, epochs]).await;
    let entries = entries.context("cannot read entries")?;
    let account = |row: &Row| {
        let account = Account { available: row.get(1), held: row.get(2), last_entry_no: row.get(3) };
        (row.get(0), account)
    };
    let accounts: HashMap<Uuid, Account> = accounts.iter().map(account).collect();
    let entries = entries.iter().map(entry).map(|entry| (EntryKey::of(&entry), entry)).collect();
    Ok(Present { accounts, entries })
}

fn entry(row: &Row) -> LedgerEntry {
    LedgerEntry {
        user_id: row.get("user_id"),
        payment_id: row.get("payment_id"),
        phase: row.get("phase"),
        kind: row.get("kind"),
        amount: row.get("amount"),
        service_id: row.get("service_id"),
        reason: row.get("reason"),
        traceparent: row.get("traceparent"),
        created_at: row.get("created_at"),
    }
}

async fn insert(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    lacking: &[Lacking<'_>],
) -> anyhow::Result<()> {
    if lacking.is_empty() {
        return Ok(());
    }
    let entries: Vec<&LedgerEntry> = lacking.iter().map(|lacking| lacking.entry).collect();
    let users: Vec<Uuid> = entries.iter().map(|e| e.user_id).collect();
    let payments: Vec<Uuid> = entries.iter().map(|e| e.payment_id).collect();
    let phases: Vec<i16> = entries.iter().map(|e| e.phase).collect();
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind.as_str()).collect();
    let amounts: Vec<i64> = entries.iter().map(|e| e.amount).collect();
    let services: Vec<Option<&str>> = entries.iter().map(|e| e.service_id.as_deref()).collect();
    let reasons: Vec<Option<&str>> = entries.iter().map(|e| e.reason.as_deref()).collect();
    let traces: Vec<Option<&str>> = entries.iter().map(|e| e.traceparent.as_deref()).collect();
    let times: Vec<jiff::Timestamp> = entries.iter().map(|e| e.created_at).collect();
    let after = |column: fn(Account) -> i64| -> Vec<Option<i64>> {
        lacking.iter().map(|lacking| lacking.after.map(column)).collect()
    };
    let numbers = after(|account| account.last_entry_no);
    let (available, held) = (after(|account| account.available), after(|account| account.held));
    let columns: [&(dyn ToSql + Sync); 14] = [
        &users,
        &payments,
        &phases,
        &kinds,
        &amounts,
        &services,
        &reasons,
        &traces,
        &times,
        &numbers,
        &available,
        &held,
        &owned.buckets,
        &owned.epochs,
    ];
    let statement = transaction.prepare_cached(INSERT).await?;
    let row = transaction.query_one(&statement, &columns).await.context("cannot insert entries")?;
    let (inserted, unmoved): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        inserted.unsigned_abs() == lacking.len() as u64 && unmoved == 0,
        "of {} entries {inserted} were inserted, and {unmoved} accounts did not move with theirs: somebody else writes to \
         this database. Nothing of this batch was written",
        lacking.len()
    );
    Ok(())
}
