//! Counts in the balance database whether money adds up, in the snapshot of the caller's transaction.
//!
//! * The database counts, since every ledger entry would have to be read otherwise.
//! * Each shard counts the rows that count on it. All rows of a user are on one shard, so what holds of each shard holds of all.
//! * A statement answers: examined, violations, the first offender, and that offender's payment if there is one.

use anyhow::{Context, Result};
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::audit::finding::{Offender, Tally};
use crate::owned_rows::OwnedRows;

/// The counts of M1, M2, M3, M5 and M7.
#[derive(Clone, Debug, Default)]
pub struct MoneyTallies {
    pub total: Tally,
    pub positive: Tally,
    pub fold: Tally,
    pub once: Tally,
    pub statement: Tally,
}

const TOTAL: &str = "
    with t as (select
        (select coalesce(sum(amount), 0) from {ledger} l where kind = 'deposit') as deposits,
        (select coalesce(sum(available), 0) from {accounts} a) as available,
        (select coalesce(sum(held), 0) from {accounts} a) as held,
        (select coalesce(sum(amount), 0) from {ledger} l where kind = 'capture') as captured)
    select (select count(*) from {accounts} a),
           (deposits <> available + held + captured)::int::bigint,
           format('deposits %s, available %s, held %s, captured %s: %s %s', deposits, available, held, captured,
                  abs(available + held + captured - deposits),
                  case when available + held + captured > deposits then 'too many' else 'missing' end),
           null::text
      from t";

const POSITIVE: &str = "
    select count(*),
           count(*) filter (where available < 0 or held < 0),
           min(format('user %s has %s available, %s held', user_id, available, held))
               filter (where available < 0 or held < 0),
           null::text
      from {accounts} a";

const FOLD: &str = "
    with fold as (
        select user_id,
               sum(case kind when 'deposit' then amount when 'hold' then -amount when 'release' then amount
                             else 0 end) as available,
               sum(case kind when 'hold' then amount when 'capture' then -amount when 'release' then -amount
                             else 0 end) as held
          from {ledger} l where kind <> 'rejection' group by user_id),
    sides as (
        select user_id, a.available, a.held, f.available as folded_available, f.held as folded_held,
               a.available is distinct from f.available or a.held is distinct from f.held as bad
          from {accounts} a full join fold f using (user_id))
    select count(*), count(*) filter (where bad),
           min(format('user %s has %s available, %s held; the ledger says %s and %s', user_id,
                      coalesce(available::text, 'nothing'), coalesce(held::text, 'nothing'),
                      coalesce(folded_available::text, 'nothing'), coalesce(folded_held::text, 'nothing')))
               filter (where bad),
           null::text
      from sides";

const ONCE: &str = "
    with payment as (
        select payment_id,
               count(*) filter (where kind = 'hold') as holds,
               count(*) filter (where kind in ('capture', 'release')) as ends,
               coalesce(sum(amount) filter (where kind = 'hold'), 0) as held,
               coalesce(sum(amount) filter (where kind in ('capture', 'release')), 0) as ended
          from {ledger} l where kind in ('hold', 'capture', 'release') group by user_id, payment_id),
    judged as (
        select *, holds > 1 or ends > 1 or (ends = 1 and (holds = 0 or held <> ended)) as bad from payment)
    select count(*), count(*) filter (where bad),
           (array_agg(format('%s holds of %s, ended %s times with %s', holds, held, ends, ended)
                      order by payment_id) filter (where bad))[1],
           min(payment_id::text) filter (where bad)
      from judged";

// Every movement against its place in the order of numbers and the fold of the entries up to it; then, without a payment,
// every account against the number of its movements.
const STATEMENT: &str = "
    with movement as (
        select user_id, payment_id, entry_no, available_after, held_after,
               row_number() over so_far as number,
               sum(case kind when 'deposit' then amount when 'hold' then -amount when 'release' then amount
                             else 0 end) over so_far as available,
               sum(case kind when 'hold' then amount when 'capture' then -amount when 'release' then -amount
                             else 0 end) over so_far as held
          from {ledger} l where kind <> 'rejection'
        window so_far as (partition by user_id order by entry_no, payment_id, phase rows unbounded preceding)),
    judged as (
        select *, entry_no is distinct from number or available_after is distinct from available
                  or held_after is distinct from held as bad
          from movement
        union all
        select user_id, null, a.last_entry_no, null, null, m.last_entry_no, null, null,
               coalesce(a.last_entry_no, 0) <> coalesce(m.last_entry_no, 0)
          from {accounts} a
          full join (select user_id, count(*) as last_entry_no from movement group by user_id) m using (user_id))
    select count(*), count(*) filter (where bad),
           (array_agg(case when payment_id is null
                      then format('user %s: the account is at entry %s, the ledger has %s', user_id,
                                  coalesce(entry_no, 0), coalesce(number, 0))
                      else format('user %s: entry %s says %s available, %s held; entry %s of the ledger makes it %s and %s',
                                  user_id, coalesce(entry_no::text, 'without a number'), available_after, held_after,
                                  number, available, held) end
                      order by payment_id, number) filter (where bad))[1],
           min(payment_id::text) filter (where bad)
      from judged";

impl MoneyTallies {
    /// The sum of both.
    fn and(self, other: &Self) -> Self {
        Self {
            total: self.total.and(&other.total),
            positive: self.positive.and(&other.positive),
            fold: self.fold.and(&other.fold),
            once: self.once.and(&other.once),
            statement: self.statement.and(&other.statement),
        }
    }
}

/// Runs the statements of M1, M2, M3, M5 and M7 on one database, and adds what they count.
pub async fn read(balance: &impl GenericClient, owned: &OwnedRows, read: &mut MoneyTallies) -> Result<()> {
    let tallies = MoneyTallies {
        total: tally(balance, owned, TOTAL).await.context("M1")?,
        positive: tally(balance, owned, POSITIVE).await.context("M2")?,
        fold: tally(balance, owned, FOLD).await.context("M3")?,
        once: tally(balance, owned, ONCE).await.context("M5")?,
        statement: tally(balance, owned, STATEMENT).await.context("M7")?,
    };
    *read = std::mem::take(read).and(&tallies);
    Ok(())
}

/// Runs a statement that counts its offenders among the rows that count.
pub async fn tally(client: &impl GenericClient, owned: &OwnedRows, statement: &str) -> Result<Tally> {
    let row = client.query_one(&owned.statement(statement), &[]).await?;
    let count = |index: usize| row.get::<_, i64>(index).unsigned_abs();
    let violations = count(1);
    let first = (violations > 0).then(|| offender(&row, owned)).transpose()?;
    Ok(Tally { examined: count(0), violations, first })
}

fn offender(row: &Row, owned: &OwnedRows) -> Result<Offender> {
    let payment_id: Option<&str> = row.get(3);
    Ok(Offender {
        payment_id: payment_id.map(str::parse::<Uuid>).transpose().context("a payment id")?,
        what: owned.located(row.get::<_, Option<String>>(2).unwrap_or_default()),
    })
}
