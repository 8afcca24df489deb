//! Snapshots of all databases of a service, for whoever reads its rows.
//!
//! * The snapshots of all shards are taken before a row is read, and each says what its shard owned at that moment. A shard that owned
//!   a bucket then had all of its rows, since one is granted only to a shard that has them. So a row counts once, on the highest
//!   epoch that a snapshot shows, though the snapshots of source and target lie on both sides of a grant.
//! * Where they lie on both sides of a fence, the bucket has no owner in them. Then they are taken again.
//! * What stays undecided is left out ([`owned_rows`](crate::owned_rows)), and whoever shows rows says so by [`left_out`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use saga::shards::map::BucketRow;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::databases::{self, Databases, ServiceDatabases};
use crate::owned_rows::{OwnedRows, Ownership, Undecided};
use crate::shard::connections::owned_buckets;

/// A move that is as it should be leaves a bucket without an owner for 300 milliseconds at most.
pub const MOVE_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// A snapshot of one database of a service.
pub struct Snapshot<'a> {
    pub client: &'a Client,
    pub rows: OwnedRows,
    service: &'static str,
}

impl Snapshot<'_> {
    /// The database for people.
    pub fn name(&self) -> String {
        databases::name(self.service, self.rows.shard())
    }
}

/// A row, and the shard that it is on, where the service has several databases.
#[derive(Debug)]
pub struct LocatedRow<'a> {
    pub shard: Option<&'a str>,
    pub row: Row,
}

/// A snapshot of each database of a service: transactions on their connections, until [`Snapshots::end`].
pub struct Snapshots<'a> {
    pub service: &'static str,
    pub each: Vec<Snapshot<'a>>,
    /// `None`: there is one database, whose rows all count.
    pub ownership: Option<Ownership>,
}

/// The snapshot of one shard waits while another one is read.
const BEGIN: &str =
    "begin isolation level repeatable read, read only; set local idle_in_transaction_session_timeout = 0";
const END: &str = "rollback";

/// Why a bucket may have no owner, and what shows it.
pub const UNDECIDED_HINT: &str =
    "A shard may not be in the list, or a move has not ended: coroctl shard list, moves.";

impl<'a> Snapshots<'a> {
    /// Takes the snapshots. While some bucket has no owner in them they are taken again, for `timeout` at most.
    ///
    /// # Errors
    /// When a database does not answer; the text says which.
    pub async fn take(databases: &'a ServiceDatabases, timeout: Duration) -> Result<Self> {
        let until = Instant::now() + timeout;
        loop {
            let snapshots = Self::once(databases).await?;
            let is_decided = snapshots.undecided().is_none_or(|undecided| undecided.nobodys.is_empty());
            if is_decided || Instant::now() >= until {
                return Ok(snapshots);
            }
            snapshots.end().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(databases: &'a ServiceDatabases) -> Result<Self> {
        let service = databases.service;
        let begin = async |client: &Client, name: Option<&str>| -> Result<Option<(String, Vec<BucketRow>)>> {
            let database = || databases::name(service, name);
            client.batch_execute(BEGIN).await.with_context(|| format!("no snapshot of {}", database()))?;
            let Some(name) = name else { return Ok(None) };
            let rows = owned_buckets(client).await.with_context(database)?;
            Ok(Some((name.to_owned(), rows)))
        };
        let begun = databases.databases.iter().map(|one| begin(&one.client, one.shard.as_deref()));
        let claims: Option<Vec<_>> = try_join_all(begun).await?.into_iter().collect();
        let ownership = claims.as_deref().map(Ownership::new);
        let rows = |at: usize| match (&ownership, &claims) {
            (Some(ownership), Some(claims)) => ownership.rows(at, &claims[at].1),
            (Some(_) | None, _) => OwnedRows::all(),
        };
        let each = databases.databases.iter().enumerate();
        let each = each.map(|(at, one)| Snapshot { client: &one.client, rows: rows(at), service }).collect();
        Ok(Self { service, each, ownership })
    }

    /// The rows of a statement on each database, with the names of their shards; of the tables that it names in braces those that
    /// count.
    ///
    /// # Errors
    /// When a database does not answer; the text begins with `failed`, and names the shard.
    pub async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        failed: &str,
    ) -> Result<Vec<LocatedRow<'_>>> {
        let mut found = Vec::new();
        for of in &self.each {
            let rows = of.client.query(&of.rows.statement(statement), parameters).await;
            let shard = of.rows.shard();
            let rows = rows.with_context(|| match shard {
                Some(shard) => format!("{failed} (shard {shard})"),
                None => failed.to_owned(),
            })?;
            found.extend(rows.into_iter().map(|row| LocatedRow { shard, row }));
        }
        Ok(found)
    }

    /// Buckets whose rows are left out; `None` where none are.
    pub fn undecided(&self) -> Option<Undecided> {
        self.ownership.as_ref().map(Ownership::undecided).filter(|undecided| !undecided.is_empty())
    }

    /// Ends the transactions.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn end(self) -> Result<()> {
        for snapshot in &self.each {
            snapshot.client.batch_execute(END).await.with_context(|| snapshot.name())?;
        }
        Ok(())
    }
}

/// Snapshots of the databases of each service: payments before balance before processor, an effect before its cause.
pub struct SagaSnapshots<'a> {
    pub payments: Snapshots<'a>,
    pub balance: Snapshots<'a>,
    pub processor: Snapshots<'a>,
}

impl<'a> SagaSnapshots<'a> {
    /// As [`Snapshots::take`].
    ///
    /// # Errors
    /// As there.
    pub async fn take(databases: &'a Databases) -> Result<Self> {
        Ok(Self {
            payments: Snapshots::take(&databases.payments, MOVE_TIMEOUT).await?,
            balance: Snapshots::take(&databases.balance, MOVE_TIMEOUT).await?,
            processor: Snapshots::take(&databases.processor, MOVE_TIMEOUT).await?,
        })
    }

    pub fn services(&self) -> [&Snapshots<'a>; 3] {
        [&self.payments, &self.balance, &self.processor]
    }

    /// Makes sure that the user is not left out.
    ///
    /// # Errors
    /// When the user's bucket is undecided on a service.
    pub fn ensure_decided(&self, user_id: Uuid) -> Result<()> {
        let is_undecided = |of: &&Snapshots<'_>| {
            of.ownership.as_ref().is_some_and(|ownership| ownership.owner_of(user_id).is_none())
        };
        if self.services().iter().any(is_undecided) {
            bail!("user {user_id} is on no shard now. {}", self.left_out().unwrap_or_default());
        }
        Ok(())
    }

    /// What [`left_out`] says, behind a sentence without its full stop; empty where nobody is left out.
    pub fn but_left_out(&self) -> String {
        self.left_out().map(|left_out| format!(". {left_out}")).unwrap_or_default()
    }

    /// As [`left_out`].
    pub fn left_out(&self) -> Option<String> {
        left_out(&self.services())
    }
}

/// A sentence about users that are not shown; `None` where all are.
pub fn left_out(services: &[&Snapshots<'_>]) -> Option<String> {
    let undecided = |of: &&Snapshots<'_>| Some(of.undecided()?.describe(of.service));
    let found: Vec<String> = services.iter().filter_map(undecided).collect();
    (!found.is_empty())
        .then(|| format!("Rows of some users are left out. {}. {UNDECIDED_HINT}", found.join("; ")))
}
