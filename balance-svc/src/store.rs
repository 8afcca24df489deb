//! All SQL of balance-svc.
//!
//! * A batch is one transaction of four statements, whatever its size: lock the accounts, read the entries, insert
//!   entries and move their money, park.
//! * Accounts are locked first and entries read in a later statement, since a statement's snapshot is older than its
//!   wait for a lock.
//! * Money moves only by entries that the insert returned, so a repeated event cannot move it again.
//! * Each statement about users names their buckets ([`Ownership`]): a database that does not own one refuses the statement.
//! * A movement gets its number and the balances after it from the account that was locked. A statement that would leave a
//!   gap writes nothing.

mod deposit;
mod movements;
mod recovery;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Context;
use saga::consumer::{ApplyError, BatchCounts, MissingRow};
use saga::contract::{ReleaseReason, Terms};
use saga::parked::{self, Parked};
use saga::postgres::{Parameters, Transaction, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

pub use self::deposit::{BALANCE_MAX, Deposit, deposit};
pub use self::movements::{Movement, Page, movements};
pub use self::recovery::recover;
use crate::account::Account;
use crate::command::Command;
use crate::saga::{Entry, State, Step, decide, next};

/// The effect of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub applied: BatchCounts,
    /// Entries inserted, by kind.
    pub entries: BTreeMap<String, u64>,
}

/// A ledger entry to insert.
struct NewEntry<'a> {
    command: &'a Command,
    phase: i16,
    kind: &'static str,
    amount: i64,
    reason: Option<String>,
    /// The account after a movement; `None` for a rejection.
    after: Option<Account>,
}

/// Applies `commands` in order and parks `unreadable`, in one transaction. `park` builds the parked message of the
/// command at an index.
///
/// # Errors
/// When holds are missing or the database failed. Nothing was written then.
pub async fn apply(
    owned: &Ownership,
    commands: &[&Command],
    unreadable: &[Parked],
    park: impl Fn(usize, &str) -> Parked,
) -> Result<Outcome, ApplyError> {
    let mut client = owned.client().await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let outcome = apply_in(&transaction, owned, commands, unreadable, park).await?;
    if outcome.applied.already > 0 {
        confirm_visible(&transaction).await?;
    }
    transaction.commit().await.context("cannot commit")?;
    Ok(outcome)
}

/// As [`apply`], in a transaction of the caller, who commits it.
///
/// # Errors
/// As [`apply`].
pub async fn apply_in(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    commands: &[&Command],
    unreadable: &[Parked],
    park: impl Fn(usize, &str) -> Parked,
) -> Result<Outcome, ApplyError> {
    let states = lock_and_read(transaction, owned, commands).await?;
    let plan = plan(commands, states)?;
    let entries = insert_entries(transaction, owned, &plan.entries).await?;
    let to_park = plan.to_park.into_iter().map(|(index, reason)| park(index, &reason));
    let parked: Vec<Parked> = unreadable.iter().cloned().chain(to_park).collect();
    parked::insert(transaction, &parked).await?;

    let inserted: u64 = entries.values().sum();
    let to_park = parked.len() - unreadable.len();
    let applied = usize::try_from(inserted).unwrap_or(usize::MAX);
    let already = commands.len() - to_park - applied;
    let contradictions = plan.contradictions;
    Ok(Outcome { applied: BatchCounts { applied, already, parked: to_park, contradictions }, entries })
}

/// The accounts and payments of a batch, read under the accounts' locks.
struct States {
    accounts: HashMap<Uuid, Account>,
    entries: HashMap<(Uuid, Uuid), Entry>,
}

async fn lock_and_read(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    commands: &[&Command],
) -> anyhow::Result<States> {
    let mut states = States { accounts: HashMap::new(), entries: HashMap::new() };
    if commands.is_empty() {
        return Ok(states);
    }
    // Sorted, in one statement over one table: two batches that share accounts cannot deadlock.
    let lock = transaction
        .prepare_cached(
            "select user_id, available, held, last_entry_no
             from accounts where user_id = any($1) and require_ownership($2, $3)
             order by user_id for no key update",
        )
        .await?;
    let read = transaction
        .prepare_cached(
            "select l.user_id, l.payment_id, l.kind, l.amount, l.service_id, l.reason
             from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
             join ledger l using (user_id, payment_id)
             where require_ownership($3, $4)
             order by l.phase",
        )
        .await?;
    let locked: Vec<Uuid> = commands.iter().map(|c| c.user_id).collect::<BTreeSet<_>>().into_iter().collect();
    let keys: BTreeSet<(Uuid, Uuid)> = commands.iter().map(|c| (c.user_id, c.payment_id)).collect();
    let (users, payments): (Vec<Uuid>, Vec<Uuid>) = keys.into_iter().unzip();
    // Sent together, executed one after the other: the read's snapshot is taken when the locks are held.
    let (locks, reads): (Parameters<'_>, Parameters<'_>) =
        (&[&locked, &owned.buckets, &owned.epochs], &[&users, &payments, &owned.buckets, &owned.epochs]);
    let (accounts, entries) = tokio::join!(transaction.query(&lock, locks), transaction.query(&read, reads));
    // In this order: when the first fails, the second says no more than that the transaction is aborted.
    let (accounts, entries) =
        (accounts.context("cannot lock accounts")?, entries.context("cannot read entries")?);
    for row in accounts {
        let account = Account { available: row.get(1), held: row.get(2), last_entry_no: row.get(3) };
        states.accounts.insert(row.get(0), account);
    }
    // Ordered by phase: a second phase replaces the hold it ended.
    for row in entries {
        let service_id = row.get::<_, Option<&str>>(4).unwrap_or_default().into();
        let terms = Terms { amount: row.get(3), service_id, client_number: None };
        let entry = entry(row.get(2), terms, row.get(5))?;
        states.entries.insert((row.get(0), row.get(1)), entry);
    }
    Ok(states)
}

fn entry(kind: &str, terms: Terms, reason: Option<&str>) -> anyhow::Result<Entry> {
    match kind {
        "hold" => Ok(Entry::Held { terms }),
        "rejection" => Ok(Entry::Rejected { terms }),
        "capture" => Ok(Entry::Captured { terms }),
        "release" => {
            let reason: ReleaseReason = reason.unwrap_or_default().parse().context(
                "a release entry has no known cause; ledger and service versions do not fit each other",
            )?;
            Ok(Entry::Released { terms, cause: reason.cause })
        }
        other => anyhow::bail!(
            "a ledger entry has the unknown kind {other}; ledger and service versions do not fit each other"
        ),
    }
}

#[derive(Default)]
struct Plan<'a> {
    entries: Vec<NewEntry<'a>>,
    /// Commands to park, each with its reason.
    to_park: Vec<(usize, String)>,
    /// The number of them that contradict the ledger.
    contradictions: usize,
}

/// Decides every command in order of arrival, each on the state that its predecessors left.
fn plan<'a>(commands: &[&'a Command], mut states: States) -> Result<Plan<'a>, ApplyError> {
    let mut plan = Plan { entries: Vec::with_capacity(commands.len()), ..Plan::default() };
    let mut missing = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        let key = (command.user_id, command.payment_id);
        let entry = states.entries.get(&key).cloned().unwrap_or(Entry::None);
        let account = states.accounts.get(&command.user_id).copied();
        let state = State { entry, available: account.map(|account| account.available) };
        let step = decide(&state, &command.event);
        match &step {
            Step::Missing => {
                missing.push(MissingRow { index, what: format!("hold of payment {}", command.payment_id) });
            }
            Step::Illegal(illegal) => plan.to_park.push((index, illegal.to_string())),
            Step::Differs(difference) => {
                plan.to_park.push((index, difference.to_string()));
                plan.contradictions += 1;
            }
            Step::Already => {}
            Step::Reject { .. } => plan.entries.extend(new_entry(command, &step, None)),
            Step::Hold { .. } | Step::Capture { .. } | Step::Release { .. } => {
                let account = account.with_context(|| no_account(command.user_id))?;
                let after = account.after(&step);
                plan.entries.extend(new_entry(command, &step, after));
                states.accounts.extend(after.map(|after| (command.user_id, after)));
            }
        }
        states.entries.insert(key, next(&state, &step).entry);
    }
    if missing.is_empty() { Ok(plan) } else { Err(ApplyError::Missing(missing)) }
}

fn no_account(user_id: Uuid) -> String {
    format!("user {user_id} has a hold and no account; nothing was written, and the batch is tried again")
}

/// The entry of a step; `after` is the account after it.
fn new_entry<'a>(command: &'a Command, step: &Step, after: Option<Account>) -> Option<NewEntry<'a>> {
    let (phase, kind, amount, reason) = match step {
        Step::Hold { terms } => (1, "hold", terms.amount, None),
        Step::Reject { terms, why } => (1, "rejection", terms.amount, Some(why.as_str().to_owned())),
        Step::Capture { amount } => (2, "capture", *amount, None),
        Step::Release { amount, cause } => {
            let reason = ReleaseReason::new(*cause, command.detail.as_deref()).to_string();
            (2, "release", *amount, Some(reason))
        }
        Step::Already | Step::Missing | Step::Differs(_) | Step::Illegal(_) => return None,
    };
    Some(NewEntry { command, phase, kind, amount, reason, after })
}

// An account moves only if its entries continue its numbers, each of them inserted.
const INSERT_ENTRIES: &str = "
    with entry as (
        insert into ledger (user_id, payment_id, phase, kind, amount, service_id, reason, traceparent,
                            entry_no, available_after, held_after)
        select * from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                             $8::text[], $9::bigint[], $10::bigint[], $11::bigint[])
         where require_ownership($12, $13)
        on conflict on constraint ledger_pkey do nothing
        returning user_id, kind, amount, entry_no
    ), delta as (
        select user_id,
               sum(case kind when 'hold' then -amount when 'release' then amount else 0 end)::bigint as available,
               sum(case kind when 'hold' then amount else -amount end)::bigint as held,
               count(*) as entries,
               max(entry_no) as last_entry_no
        from entry where kind <> 'rejection' group by user_id
    ), moved as (
        update accounts a
        set available = a.available + d.available, held = a.held + d.held, last_entry_no = d.last_entry_no
        from delta d where a.user_id = d.user_id and a.last_entry_no + d.entries = d.last_entry_no
        returning a.user_id
    )
    select kind, count(*), (select count(*) from delta) - (select count(*) from moved) from entry group by kind";

/// Inserts the entries and moves their money in one statement; returns the number inserted per kind.
async fn insert_entries(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    entries: &[NewEntry<'_>],
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut inserted = BTreeMap::new();
    if entries.is_empty() {
        return Ok(inserted);
    }
    let statement = transaction.prepare_cached(INSERT_ENTRIES).await?;
    let users: Vec<Uuid> = entries.iter().map(|e| e.command.user_id).collect();
    let payments: Vec<Uuid> = entries.iter().map(|e| e.command.payment_id).collect();
    let phases: Vec<i16> = entries.iter().map(|e| e.phase).collect();
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind).collect();
    let amounts: Vec<i64> = entries.iter().map(|e| e.amount).collect();
    let services: Vec<&str> = entries.iter().map(|e| &*e.command.event.terms().service_id).collect();
    let reasons: Vec<Option<&str>> = entries.iter().map(|e| e.reason.as_deref()).collect();
    let traces: Vec<Option<&str>> = entries.iter().map(|e| e.command.traceparent.as_deref()).collect();
    let after = |column: fn(Account) -> i64| -> Vec<Option<i64>> {
        entries.iter().map(|entry| entry.after.map(column)).collect()
    };
    let numbers = after(|account| account.last_entry_no);
    let (available, held) = (after(|account| account.available), after(|account| account.held));
    let columns: [&(dyn ToSql + Sync); 13] = [
        &users,
        &payments,
        &phases,
        &kinds,
        &amounts,
        &services,
        &reasons,
        &traces,
        &numbers,
        &available,
        &held,
        &owned.buckets,
        &owned.epochs,
    ];
    let rows = transaction.query(&statement, &columns).await.context("cannot insert entries")?;
    for row in rows {
        let unmoved: i64 = row.get(2);
        anyhow::ensure!(
            unmoved == 0,
            "{unmoved} accounts of this batch were changed or deleted while it ran, in spite of its locks; nothing was \
             written, and the batch is tried again"
        );
        inserted.insert(row.get(0), row.get::<_, i64>(1).unsigned_abs());
    }
    Ok(inserted)
}

/// A user's balance in minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    pub available: i64,
    pub held: i64,
}

/// The balance of a user; `None` for a user without an account.
pub async fn balance(owned: &Ownership, user_id: Uuid) -> anyhow::Result<Option<Balance>> {
    let statement = "select available, held from accounts where user_id = $1 and require_ownership($2, $3)";
    let parameters: Parameters<'_> = &[&user_id, &owned.buckets, &owned.epochs];
    let rows = owned.query(statement, parameters, "cannot read balance").await?;
    Ok(rows.first().map(|row| Balance { available: row.get(0), held: row.get(1) }))
}
