//! The SQL floor: how many payments per second the rows alone allow, on this machine, in this cluster.
//!
//! The saga's own seven commits, hand-batched, on databases with the real schema, indexes, roles and session
//! settings; no HTTP, no brokers, no replication slot. Each worker has its own users, so none waits for
//! another's account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use saga::postgres::{self, Client};
use sql::Database;
use tokio::task::JoinSet;

use super::cpu::{CpuTime, Meter};
use super::floor_sql::Batch;
use super::users::Users;

/// Payments per commit.
pub const BATCH_PAYMENTS: usize = 200;
const FUNDS: i64 = 1_000_000_000_000;
const WARM_UP: Duration = Duration::from_secs(2);
const NAMES: [(Database, &str); 3] = [
    (Database::Payments, "bench_floor_payments"),
    (Database::Balance, "bench_floor_balance"),
    (Database::Processor, "bench_floor_processor"),
];

/// How to reach the cluster, and how hard to work it.
pub struct Setup<'a> {
    pub admin_url: &'a str,
    pub passwords: sql::Passwords,
    pub workers: usize,
    pub zipf: f64,
}

/// The three databases with their workers' connections. [`Floor::remove`] drops them again.
pub struct Floor {
    workers: Vec<Worker>,
}

struct Worker {
    payments: Client,
    balance: Client,
    processor: Client,
    users: Users,
}

pub struct FloorFigures {
    pub settled: u64,
    pub seconds: f64,
    pub cpu: CpuTime,
}

impl Floor {
    /// Removes the databases, also leftovers of an interrupted run.
    pub async fn remove(admin_url: &str) -> Result<()> {
        for (_, name) in NAMES {
            sql::drop_database(admin_url, name).await?;
        }
        Ok(())
    }

    pub async fn make(setup: &Setup<'_>, users: &Users) -> Result<Self> {
        let mut pools = Vec::new();
        for (kind, name) in NAMES {
            sql::create_database(setup.admin_url, kind, name).await?;
            let role = kind.service_role();
            let url = sql::database_url(setup.admin_url, name, role, setup.passwords.of(role)?)?;
            pools.push(postgres::pool(&url, setup.workers, "bench-floor")?);
        }
        sql::seed(setup.admin_url, NAMES[0].1).await?;
        let mut workers = Vec::new();
        for users in users.split(setup.workers, setup.zipf)? {
            let [payments, balance, processor] = [pools[0].get(), pools[1].get(), pools[2].get()];
            let (payments, balance, processor) = tokio::try_join!(payments, balance, processor)?;
            let fund = "insert into accounts (user_id, available) select user_id, $2 from unnest($1::uuid[]) as n (user_id)";
            balance.execute(fund, &[&users.ids(), &FUNDS]).await.context("fund accounts")?;
            workers.push(Worker { payments, balance, processor, users });
        }
        Ok(Self { workers })
    }

    /// Works for `window`.
    pub async fn run(&mut self, meter: &Meter, window: Duration) -> Result<FloorFigures> {
        let (settled, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for worker in self.workers.drain(..) {
            tasks.spawn(worker.run(settled.clone(), stop.clone()));
        }
        tokio::time::sleep(WARM_UP).await;
        let (before, began, then) = (meter.sample(), Instant::now(), settled.load(Ordering::Relaxed));
        tokio::time::sleep(window).await;
        let (cpu, seconds) = (meter.sample().since(&before), began.elapsed().as_secs_f64());
        let settled = settled.load(Ordering::Relaxed) - then;
        stop.store(true, Ordering::Relaxed);
        while let Some(worker) = tasks.join_next().await {
            self.workers.push(worker.context("floor worker")??);
        }
        Ok(FloorFigures { settled, seconds, cpu })
    }
}

impl Worker {
    async fn run(self, settled: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Result<Self> {
        let mut random = SmallRng::from_os_rng();
        while !stop.load(Ordering::Relaxed) {
            let batch = Batch::new((0..BATCH_PAYMENTS).map(|_| self.users.pick(&mut random)).collect());
            self.settle(&batch).await.context("floor")?;
            settled.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        Ok(self)
    }

    /// The seven commits.
    async fn settle(&self, batch: &Batch) -> Result<()> {
        batch.accept(&self.payments).await?;
        batch.hold(&self.balance).await?;
        batch.authorize(&self.payments).await?;
        batch.intend(&self.processor).await?;
        batch.settle(&self.processor).await?;
        batch.capture(&self.balance).await?;
        batch.complete(&self.payments).await
    }
}
