//! Commits and rolls back transactions of every kind on shared rows until it is stopped.
//!
//! * Faults of the servers do not end it.
//! * It does not record what it committed: the oracle reads that from the WAL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use crate::harness::{Harness, Relay, attempt, connect};
use crate::oracle::Oracle;

const WORKERS: u64 = 2;

pub struct Workload {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    url: String,
    /// Every third row is also work for the queue.
    work: bool,
    stop: AtomicBool,
    /// Each version is used once, so that each change of a row has an id of its own.
    version: AtomicI32,
    committed: AtomicU64,
}

impl Workload {
    pub async fn start(url: &str, work: bool) -> Workload {
        connect(url).await.batch_execute("create table noise (n int)").await.expect("an unpublished table");
        let shared = Arc::new(Shared {
            url: url.to_owned(),
            work,
            stop: AtomicBool::new(false),
            version: AtomicI32::new(0),
            committed: AtomicU64::new(0),
        });
        let workers = (0..WORKERS).map(|seed| tokio::spawn(worker(Arc::clone(&shared), seed))).collect();
        Workload { shared, workers }
    }

    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// Waits until `count` more transactions are committed.
    pub async fn more(&self, count: u64) {
        let wanted = self.committed() + count;
        crate::harness::eventually(&format!("{count} more transactions"), || async {
            (self.committed() >= wanted).then_some(())
        })
        .await;
    }

    pub async fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("load");
        }
    }
}

async fn worker(shared: Arc<Shared>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client: Option<Client> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(sql) = client.as_mut().filter(|sql| !sql.is_closed()) else {
            client = attempt(&shared.url).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        match sql.batch_execute(&transaction(&mut random, &shared)).await {
            Ok(()) => {
                shared.committed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => roll_back(sql, &error).await,
        }
        // The pause keeps the topic small enough to be read again and again.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// After a deadlock with the other worker, a change of the table or a lost server nothing was committed, or the outcome
/// is unknown.
async fn roll_back(sql: &Client, error: &Error) {
    if error.as_db_error().is_some() {
        let _ = sql.batch_execute("rollback").await;
    }
}

fn transaction(random: &mut StdRng, shared: &Shared) -> String {
    let one = |random: &mut StdRng| {
        let version = shared.version.fetch_add(1, Ordering::Relaxed);
        let kind = if shared.work && version % 3 == 0 { "work" } else { "made" };
        let (owner, id, length) =
            (random.random_range(0..8), random.random_range(0..20), random.random_range(0..300));
        format!(
            "insert into items (owner, id, version, kind, note) values ('o{owner}', {id}, {version}, '{kind}', \
             repeat('x', {length})) on conflict (owner, id) do update set version = excluded.version, \
             kind = excluded.kind, note = excluded.note;"
        )
    };
    let rows = |random: &mut StdRng, count| (0..count).map(|_| one(random)).collect::<String>();
    match random.random_range(0..10) {
        0..4 => one(random),
        4 => format!("begin; {} commit", rows(random, 3)),
        5 => format!("begin; {} commit", rows(random, 40)),
        6 => format!("begin; {} rollback", rows(random, 2)),
        7 => {
            let [before, rolled_back, after] = [1, 2, 1].map(|count| rows(random, count));
            format!("begin; {before} savepoint s; {rolled_back} rollback to s; {after} commit")
        }
        8 => "insert into noise values (1)".to_owned(),
        // The published changes of this transaction are all rolled back.
        _ => {
            format!("begin; savepoint s; {} rollback to s; insert into noise values (2); commit", one(random))
        }
    }
}

/// Starts a relay, a witness and a load; returns when the relay streams, the load has begun, and it was sampled.
pub async fn under_load(harness: &mut Harness, work: bool) -> (Relay, Oracle, Workload) {
    let relay = harness.streaming().await;
    let oracle = Oracle::watch(harness, work).await;
    let load = Workload::start(&harness.url, work).await;
    load.more(50).await;
    oracle.sampled().await;
    (relay, oracle, load)
}
