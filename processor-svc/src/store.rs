//! All SQL of processor-svc.
//!
//! * A batch is one statement, or one transaction when messages are parked, whatever its size.
//! * Rows change by compare-and-set on (payment, attempt, status): a transition is written only if the row is still in the
//!   state from which it was decided. The caller decides the others again.
//! * Each statement about users names their buckets ([`Ownership`]): a database that does not own one refuses the statement.
//!   Those of the sweeper leave out the rows of such users.
//! * [`sweep`] has the SQL of the sweeper, [`cancel`] that of requests to cancel, [`resolutions`] that of operators.

pub mod cancel;
mod intents;
mod recovery;
pub mod resolutions;
pub mod sweep;
mod transitions;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use prometheus::Registry;
use saga::parked::{self, Parked};
use saga::postgres::{Client, Parameters, Pool};
use saga::shards::{Ownership, Router};
use tokio_postgres::Row;
use uuid::Uuid;

pub use self::intents::{Admission, HoldBack, Intent};
pub use self::transitions::Transition;
use crate::charge::{Charge, ChargeKey};
use crate::saga::State;

#[derive(Clone)]
pub struct Store {
    pool: Pool,
    router: Router,
    lease: Duration,
}

const READ_ENDED: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent from charges
     where payment_id = any($1) and status in ('succeeded', 'declined', 'expired', 'cancelled')
       and require_ownership($2, $3)";

const READ_STATES: &str = "
    select payment_id, status, attempt, exposed from charges
     where payment_id = any($1) and require_ownership($2, $3)";

// An epoch only rises.
const OWNERSHIP_CHANGES: &str = "select sum(epoch)::int8 from owned_buckets";

const IDENTITY: &str = "
    select system.system_identifier::text || '/' || checkpoint.timeline_id::text || '/' || d.oid::text
      from pg_control_system() system, pg_control_checkpoint() checkpoint, pg_database d
     where d.datname = current_database()";

impl Store {
    /// `lease`: how long a call belongs to its process.
    pub fn new(pool: Pool, lease: Duration) -> Store {
        let router = Router::one(pool.clone());
        Store { pool, router, lease }
    }

    /// Shows its metrics from now on.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(&self, registry: &Registry) -> anyhow::Result<()> {
        self.router.register(registry)
    }

    pub async fn reachable(&self) -> Result<(), String> {
        saga::postgres::reachable(&self.pool).await
    }

    /// The connections, for the acts that each service has alike.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    async fn client(&self) -> anyhow::Result<Client> {
        self.pool.get().await.context("no connection to the processor database")
    }

    /// The database of these users.
    async fn owned(&self, users: &[Uuid]) -> anyhow::Result<Ownership> {
        Ok(self.router.ownership(users).await?)
    }

    /// The indices of the users who are being moved to another database.
    pub async fn moving(&self, users: &[Uuid]) -> Vec<usize> {
        self.router.split(users).await.moving
    }

    /// The result of work in the name of `owned`. When the database refused it, who owns which user is read again, so that
    /// whoever repeats the work succeeds.
    async fn heeded<T>(&self, owned: &Ownership, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if let Err(error) = &result {
            self.router.was_refused(owned, error).await;
        }
        result
    }

    /// The rows of one statement.
    async fn query(
        &self,
        owned: &Ownership,
        text: &str,
        parameters: Parameters<'_>,
        failed: &'static str,
    ) -> anyhow::Result<Vec<Row>> {
        self.heeded(owned, owned.query(text, parameters, failed).await).await
    }

    /// Parks messages.
    pub async fn park(&self, messages: &[Parked]) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.context("cannot begin a transaction")?;
        parked::insert(&transaction, messages).await?;
        transaction.commit().await.context("cannot commit")
    }

    /// The current states of charges. Charges without a row are left out.
    pub async fn states(&self, charges: &[ChargeKey]) -> anyhow::Result<HashMap<Uuid, State>> {
        if charges.is_empty() {
            return Ok(HashMap::new());
        }
        let owned = self.owned(&column(charges, |charge| charge.user_id)).await?;
        let payments = column(charges, |charge| charge.payment_id);
        let parameters: Parameters<'_> = &[&payments, &owned.buckets, &owned.epochs];
        let rows = self.query(&owned, READ_STATES, parameters, "cannot read states").await?;
        rows.iter().map(|row| Ok((row.get("payment_id"), state(row)?))).collect()
    }

    /// The payments of those of these charges that have ended. A row with a different charge does not count.
    pub async fn ended(&self, charges: &[&Charge]) -> anyhow::Result<HashSet<Uuid>> {
        let owned = self.owned(&column(charges, |charge| charge.user_id)).await?;
        let ids = column(charges, |charge| charge.payment_id);
        let parameters: Parameters<'_> = &[&ids, &owned.buckets, &owned.epochs];
        let rows = self.query(&owned, READ_ENDED, parameters, "cannot read ended charges").await?;
        let existing: HashMap<Uuid, Charge> =
            rows.iter().map(|row| (row.get("payment_id"), charge(row))).collect();
        let same =
            |charge: &&&Charge| existing.get(&charge.payment_id).is_some_and(|row| row.is_same(charge));
        Ok(charges.iter().filter(same).map(|charge| charge.payment_id).collect())
    }

    /// A number that changes when the database gets a user from another one, or gives one up.
    pub async fn ownership_changes(&self) -> anyhow::Result<i64> {
        let client = self.client().await?;
        let read = client.prepare_cached(OWNERSHIP_CHANGES).await?;
        Ok(client.query_one(&read, &[]).await.context("cannot read which users the database owns")?.get(0))
    }

    /// The identity of the database and its history: cluster, timeline (a restore or failover starts a new one), database.
    pub async fn identity(&self) -> anyhow::Result<String> {
        let client = self.client().await?;
        Ok(client.query_one(IDENTITY, &[]).await.context("cannot read the identity of the database")?.get(0))
    }
}

fn charge(row: &Row) -> Charge {
    Charge {
        payment_id: row.get("payment_id"),
        user_id: row.get("user_id"),
        client_number: row.get("client_number"),
        service_id: row.get("service_id"),
        amount: row.get("amount"),
        traceparent: row.get("traceparent"),
    }
}

fn state(row: &Row) -> anyhow::Result<State> {
    let (attempt, exposed) = (row.get("attempt"), row.get("exposed"));
    Ok(match row.get("status") {
        "waiting" => State::Waiting { attempt },
        "calling" => State::Calling { attempt, exposed },
        "unknown" => State::Unknown { attempt },
        "succeeded" => State::Succeeded,
        "declined" => State::Declined,
        "expired" => State::Expired,
        "cancelled" => State::Cancelled,
        other => bail!(
            "a charge has the unknown status {other:?}; database and service versions do not fit each other"
        ),
    })
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
