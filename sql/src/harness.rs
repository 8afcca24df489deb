//! Creates a database for one test, on the servers of a running stack.
//!
//! * [`Harness::finish`] drops it. A test that fails leaves it for inspection.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::{Database, Passwords, admin, connect, create_database, database_url, drop_database};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The database of one test.
pub struct Harness {
    admin_url: String,
    passwords: Passwords,
    name: String,
    kind: Database,
}

impl Harness {
    /// Creates the database.
    ///
    /// # Errors
    /// When the variables of a stack (POSTGRES_ADMIN_URL, those of [`Passwords`]) are not set, or the server refuses.
    pub async fn new(kind: Database) -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| {
                format!("{name} is not set: run `cargo stack test`, or `. .stack/env` after `cargo stack up`")
            })
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{}_{number}", kind.name(), std::process::id());
        let harness = Self {
            admin_url: variable("POSTGRES_ADMIN_URL")?,
            passwords: Passwords::from_env()?,
            name,
            kind,
        };
        create_database(&harness.admin_url, kind, &harness.name).await?;
        Ok(harness)
    }

    /// The URL of the database for `role`.
    ///
    /// # Errors
    /// When POSTGRES_ADMIN_URL names no TCP host, or the role does not log in.
    pub fn url(&self, role: &str) -> Result<String> {
        database_url(&self.admin_url, &self.name, role, self.passwords.of(role)?)
    }

    /// The URL for the service that owns this kind of database, with its rights only.
    ///
    /// # Errors
    /// When POSTGRES_ADMIN_URL names no TCP host.
    pub fn service_url(&self) -> Result<String> {
        self.url(self.kind.service_role())
    }

    /// A session that acts as the owner of the tables, as migrations do.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn owner(&self) -> Result<Client> {
        let client = connect(&admin::with_database(&self.admin_url, &self.name)?).await?;
        client.batch_execute("set role coro_owner").await.context("cannot act as coro_owner")?;
        Ok(client)
    }

    /// As [`barriers`], in this database.
    ///
    /// # Errors
    /// As there.
    pub fn barriers<'a, T: 'a>(
        &'a self,
        work: impl Future<Output = T> + 'a,
    ) -> impl Future<Output = Result<(T, i64)>> + 'a {
        barriers(&self.admin_url, &self.name, work)
    }

    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Drops the database.
    ///
    /// # Errors
    /// When the database cannot be dropped.
    pub async fn finish(self) -> Result<()> {
        drop_database(&self.admin_url, &self.name).await
    }
}

/// Gives up a bucket that is at the epoch `known`, or takes it, as a move does. `owner` has the rights of the owner of the tables.
///
/// # Errors
/// When the bucket is not at that epoch.
pub async fn change_ownership(
    owner: &Client,
    bucket: i16,
    known: i64,
    epoch: i64,
    owned: bool,
) -> Result<()> {
    let change = "select change_ownership(array[$1::int2], array[$2::int8], array[$3::int8], $4, 'other')";
    let done = owner.execute(change, &[&bucket, &known, &epoch, &owned]).await;
    done.map(drop).with_context(|| format!("bucket {bucket} does not go from epoch {known} to {epoch}"))
}

/// Does `work` in a database; returns its result, and how many of its commits also waited for all that was visible: so does whoever
/// acknowledges a row that is there already, and that perhaps no standby has. A logical slot shows them. The pool of `work` is to be
/// no guarded one, which makes such commits by itself.
///
/// # Errors
/// When the server refuses the slot.
pub fn barriers<'a, T: 'a>(
    admin_url: &'a str,
    database: &'a str,
    work: impl Future<Output = T> + 'a,
) -> impl Future<Output = Result<(T, i64)>> + 'a {
    // However large it is, the future of the test stays small.
    let work = Box::pin(work);
    async move {
        let client = connect(&admin::with_database(admin_url, database)?).await?;
        client.batch_execute("set role none").await.context("cannot act as the administrator")?;
        let slot = format!("barriers_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let make = "select from pg_create_logical_replication_slot($1, 'test_decoding', true)";
        client.execute(make, &[&slot]).await.context("cannot make a slot")?;
        let done = work.await;
        let count = "select count(*) from pg_logical_slot_get_changes($1, null, null) where data like '%coro.barrier%'";
        let waited = client.query_one(count, &[&slot]).await.context("cannot read the slot")?.get(0);
        // A database with a slot that is in use cannot be dropped.
        client
            .execute("select pg_drop_replication_slot($1)", &[&slot])
            .await
            .context("cannot drop the slot")?;
        Ok((done, waited))
    }
}
