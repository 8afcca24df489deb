//! The rows of a backlog: a database and a table of their own, and copies of one slot.

use std::fmt;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use coroctl::databases::connect;
use coroctl::stack::Stack;

const DATABASE: &str = "bench_relay";
pub const PUBLICATION: &str = "bench";
pub const TABLE: &str = "orders";
const BASE_SLOT: &str = "bench_base";

/// How the rows of a backlog are spread over transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// 1,000 rows a transaction.
    Batches,
    /// One.
    Singles,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Batches => "batches",
            Self::Singles => "singles",
        })
    }
}

impl Shape {
    fn rows_per_transaction(self) -> u64 {
        match self {
            Self::Batches => 1000,
            Self::Singles => 1,
        }
    }
}

/// About 240 bytes a row on disk. The note is hexadecimal, so that compression flatters nobody.
const SCHEMA: &str = "
    create table orders (
        id uuid primary key, account_id uuid not null, amount bigint not null, note text not null,
        created_at timestamptz not null
    );
    create publication bench for table orders with (publish = 'insert, update');";

/// `$1` rows.
const INSERT: &str = "
    insert into orders
    select gen_random_uuid(), gen_random_uuid(), (random() * 1e6)::bigint,
           md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text),
           clock_timestamp()
    from generate_series(1, $1::int8)";

pub struct Backlog {
    admin: Client,
    sql: Client,
    pub url: String,
}

impl Backlog {
    /// Also removes leftovers of an interrupted run.
    pub async fn make(stack: &Stack) -> Result<Self> {
        let admin = connect(&stack.postgres_admin_url).await?;
        tidy(&admin).await?;
        admin.batch_execute(&format!("create database {DATABASE} template template0")).await?;
        let (server, _) = stack.postgres_admin_url.rsplit_once('/').context("POSTGRES_ADMIN_URL")?;
        let url = format!("{server}/{DATABASE}");
        let sql = connect(&url).await?;
        sql.batch_execute(SCHEMA).await?;
        Ok(Self { admin, sql, url })
    }

    /// Replaces the rows that are there.
    pub async fn load(&mut self, shape: Shape, rows: u64) -> Result<()> {
        self.clear().await?;
        self.make_slot(BASE_SLOT).await?;
        let each = shape.rows_per_transaction();
        let insert = INSERT.replace("$1", &each.to_string());
        // Without waiting for the disk: that only shortens loading, the WAL is the same.
        self.sql.batch_execute("set synchronous_commit = off").await?;
        let transactions = rows / each;
        self.sql
            .batch_execute(&format!(
                "do $$ begin for n in 1..{transactions} loop {insert}; commit; end loop; end $$"
            ))
            .await
            .context("backlog")?;
        self.sql.batch_execute("reset synchronous_commit").await?;
        Ok(())
    }

    pub async fn clear(&mut self) -> Result<()> {
        drop_slots(&self.sql).await?;
        self.sql.batch_execute("truncate orders").await?;
        Ok(())
    }

    /// A slot that begins now.
    pub async fn make_slot(&self, slot: &str) -> Result<()> {
        self.sql.query("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await?;
        Ok(())
    }

    /// A slot that begins where the backlog does.
    pub async fn copy_slot(&self, slot: &str) -> Result<()> {
        let copy = "select pg_copy_logical_replication_slot($1, $2)";
        self.sql.query(copy, &[&BASE_SLOT, &slot]).await?;
        Ok(())
    }

    /// Waits until its reader has gone.
    pub async fn drop_slot(&self, slot: &str) -> Result<()> {
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                    where slot_name = $1 and not active";
        let there = "select 1 from pg_replication_slots where slot_name = $1";
        for _ in 0..300 {
            self.sql.query(drop, &[&slot]).await?;
            if self.sql.query(there, &[&slot]).await?.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::bail!("slot {slot} is still being read")
    }

    /// Each run begins with clean buffers.
    pub async fn checkpoint(&self) -> Result<()> {
        self.sql.batch_execute("checkpoint").await.context("checkpoint")
    }

    /// The end of the WAL.
    pub async fn end(&self) -> Result<String> {
        Ok(self.sql.query_one("select pg_current_wal_flush_lsn()::text", &[]).await?.get(0))
    }

    /// System identifier and timeline.
    pub async fn cluster(&self) -> Result<(String, i32)> {
        let query = "select (select system_identifier::text from pg_control_system()),
                            (select timeline_id from pg_control_checkpoint())";
        let row = self.sql.query_one(query, &[]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// A connection that commits single rows, and its prepared statement.
    pub async fn committer(&self) -> Result<(Client, tokio_postgres::Statement)> {
        let client = connect(&self.url).await?;
        let insert = client.prepare(&INSERT.replace("$1::int8", "1")).await?;
        Ok((client, insert))
    }

    pub async fn remove(self) -> Result<()> {
        drop(self.sql);
        tidy(&self.admin).await
    }
}

async fn drop_slots(sql: &Client) -> Result<()> {
    let stale = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where database = $1 and not active";
    sql.query(stale, &[&DATABASE]).await?;
    Ok(())
}

async fn tidy(admin: &Client) -> Result<()> {
    let end = "select pg_terminate_backend(active_pid) from pg_replication_slots
               where database = $1 and active";
    for _ in 0..100 {
        if admin.query(end, &[&DATABASE]).await?.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop_slots(admin).await?;
    admin.batch_execute(&format!("drop database if exists {DATABASE} with (force)")).await?;
    Ok(())
}
