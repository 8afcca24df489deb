//! Reads the payments of a run: counts while it lasts, every row at the end.

use anyhow::{Context, Result};
use tokio_postgres::Row;
use uuid::Uuid;

use coroctl::databases::ServiceDatabases;
use coroctl::owned_rows::OwnedRows;

/// Payments by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub initiated: u64,
    pub authorized: u64,
    /// Authorized, with an unknown outcome at the gateway.
    pub unknown: u64,
    pub completed: u64,
    pub failed: u64,
    pub rejected: u64,
    pub cancelled: u64,
}

impl Counts {
    pub fn ended(&self) -> u64 {
        self.completed + self.failed + self.rejected + self.cancelled
    }

    fn slot(&mut self, status: &str, unknown: bool) -> Option<&mut u64> {
        Some(match status {
            "initiated" => &mut self.initiated,
            "authorized" if unknown => &mut self.unknown,
            "authorized" => &mut self.authorized,
            "completed" => &mut self.completed,
            "failed" => &mut self.failed,
            "rejected" => &mut self.rejected,
            "cancelled" => &mut self.cancelled,
            _ => return None,
        })
    }
}

/// One payment at the end of a run.
#[derive(Clone, Debug)]
pub struct PaymentRow {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub key: String,
    pub amount: i64,
    pub status: String,
    pub reason: Option<String>,
    /// From its acceptance to its end, or until now.
    pub seconds: f64,
}

/// Reads as the read-only role, on one connection to each shard for as long as that lasts.
pub struct Board {
    urls: String,
    users: Vec<Uuid>,
    databases: Option<ServiceDatabases>,
}

impl Board {
    pub fn of(users: &[Uuid], payments_database_url: &str) -> Self {
        Self { urls: payments_database_url.to_owned(), users: users.to_owned(), databases: None }
    }

    /// `None` while the database does not answer.
    pub async fn counts(&mut self) -> Option<Counts> {
        let counted = self.count().await;
        if counted.is_err() {
            self.databases = None;
        }
        counted.ok()
    }

    async fn count(&mut self) -> Result<Counts> {
        let query = "select status, event = 'outcome_unknown', count(*) from {payments} p
                     where user_id = any($1) group by 1, 2";
        let mut counts = Counts::default();
        for row in self.rows(query).await? {
            let status: &str = row.get(0);
            let slot = counts.slot(status, row.get(1)).with_context(|| format!("unknown status {status}"))?;
            *slot += row.get::<_, i64>(2).unsigned_abs();
        }
        Ok(counts)
    }

    /// Every payment of the run.
    pub async fn payments(&mut self) -> Result<Vec<PaymentRow>> {
        let query = "select payment_id, user_id, idempotency_key, amount, status, reason,
                            extract(epoch from coalesce(completed_at, failed_at, rejected_at, cancelled_at, now())
                                               - initiated_at)::float8
                     from {payments} p where user_id = any($1)";
        let rows = self.rows(query).await.context("payments of the run")?;
        let row = |row: &Row| PaymentRow {
            payment_id: row.get(0),
            user_id: row.get(1),
            key: row.get(2),
            amount: row.get(3),
            status: row.get(4),
            reason: row.get(5),
            seconds: row.get(6),
        };
        Ok(rows.iter().map(row).collect())
    }

    /// What a statement about the users finds on each shard. A payment that is moved meanwhile may be missing, or there twice.
    async fn rows(&mut self, query: &str) -> Result<Vec<Row>> {
        let databases =
            match self.databases.take().filter(|of| !of.databases.iter().any(|one| one.client.is_closed())) {
                Some(open) => open,
                None => ServiceDatabases::connect("payments", &self.urls).await?,
            };
        let mut rows = Vec::new();
        for database in &databases.databases {
            let owned = database.shard.as_deref().map_or_else(OwnedRows::all, OwnedRows::of_shard);
            rows.extend(database.client.query(&owned.statement(query), &[&self.users]).await?);
        }
        self.databases = Some(databases);
        Ok(rows)
    }
}
