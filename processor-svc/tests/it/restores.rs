//! The database goes back to an older state, Redis stays as it is: what only Redis knows decides nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use processor_svc::work::Job;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use saga::incarnation;
use uuid::Uuid;

use crate::harness::{Database, Gateway, Processor, WAIT_TIMEOUT, env, job, jobs};
use crate::jobs::{PARKED, SUCCEEDED, until_metric};
use crate::queue::{Queue, with_queue};

const ENDED: &str = "processor_jobs_total{result=\"ended\"}";
const ALREADY: &str = "processor_jobs_total{result=\"already\"}";

/// The entries of these charges in Redis.
pub struct Known {
    redis: MultiplexedConnection,
    keys: Vec<String>,
}

impl Known {
    /// As soon as all of them are there.
    pub async fn of(database: &Database, jobs: &[Job]) -> Known {
        let redis = redis::Client::open(env("REDIS_URL")).unwrap();
        let redis = redis.get_multiplexed_async_connection().await.unwrap();
        let identity = database.store(Duration::from_secs(1)).identity().await.unwrap();
        let key = |job: &Job| format!("processor/{identity}/ended/{}", job.charge.fingerprint());
        let mut known = Known { redis, keys: jobs.iter().map(key).collect() };
        let written = async {
            while known.count().await < jobs.len() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, written).await.expect("ended charges are in Redis");
        known
    }

    pub async fn count(&mut self) -> usize {
        self.redis.exists(&self.keys).await.unwrap()
    }

    pub async fn delete(&mut self) {
        self.redis.del::<_, ()>(&self.keys).await.unwrap();
    }
}

/// Waits until the processor has a connection to Redis and the identity of the database: from then on it saves charges that have
/// ended. It takes messages whose deadline has passed to see that: nothing is charged for them.
pub async fn until_redis_answers(processor: &Processor, queue: &Queue) {
    let answered = async {
        while processor.metric("processor_cache_total{result=\"miss\"}").await == 0.0 {
            let mut late = job("5551234");
            late.expires_at = Some(Timestamp::now() - Duration::from_secs(60));
            queue.send(&[late]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, answered).await.expect("Redis answers");
}

/// The rows are restored from before the charges, Redis is as it was: system, timeline and database are the same.
#[tokio::test]
async fn a_charge_that_only_redis_knows_is_made() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let processor = Processor::with(with_queue(&database, &gateway, &queue, &env("REDIS_URL"))).await;
    until_redis_answers(&processor, &queue).await;
    let all = jobs(60, "5551234");
    queue.send(&all).await;
    database.until(SUCCEEDED, 60).await;
    let mut known = Known::of(&database, &all).await;
    let owner = database.owner().await;
    let ids = |jobs: &[Job]| jobs.iter().map(|job| job.charge.payment_id).collect::<Vec<_>>();
    let unconfirmed = "processor_cache_total{result=\"unconfirmed\"}";
    // On a busy machine Redis may not answer in time: then once more.
    let mut rounds = 0.0;
    while processor.metric(unconfirmed).await == 0.0 {
        assert!(rounds < 20.0, "Redis answered in time for none");
        rounds += 1.0;
        // A third is gone, of a third the end is, and a third is as it was.
        owner.execute("delete from charges where payment_id = any($1)", &[&ids(&all[..20])]).await.unwrap();
        let before = "update charges set status = 'unknown', exposed = true, provider_reference = null,
                             decided_at = null where payment_id = any($1)";
        owner.execute(before, &[&ids(&all[20..40])]).await.unwrap();
        queue.send(&all).await;
        database.until(SUCCEEDED, 60).await;
        until_metric(&processor, ENDED, ALREADY, 40.0 * rounds).await;
    }
    assert!(processor.metric(ENDED).await <= 20.0 * rounds, "only what the database says ended");
    let called = processor.metric("processor_jobs_total{result=\"calling\"}").await;
    assert_eq!(called, 60.0 + 20.0 * rounds);
    assert_eq!(known.count().await, 60, "Redis was warm all the time");
    assert_eq!(gateway.ledger().await.len(), 60, "the gateway knew the key");
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// A backup as people make one, and bring it back under a processor that runs and has work.
#[tokio::test]
async fn a_dump_that_is_older_than_redis_is_restored_and_no_charge_is_lost() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let processor = Processor::with(with_queue(&database, &gateway, &queue, &env("REDIS_URL"))).await;
    until_redis_answers(&processor, &queue).await;
    let (before, after) = (jobs(20, "5551234"), jobs(40, "5551234"));
    queue.send(&before).await;
    database.until(SUCCEEDED, 20).await;
    let dump = Dump::of(&database);
    queue.send(&after).await;
    database.until(SUCCEEDED, 60).await;
    let all = [before, after.clone()].concat();
    let mut known = Known::of(&database, &all).await;

    // A message that comes while there are no tables is neither lost nor parked.
    let (during, restored) = (jobs(20, "5551234"), std::thread::spawn(move || dump.restore()));
    for job in &during {
        queue.send(std::slice::from_ref(job)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::task::spawn_blocking(|| restored.join().unwrap()).await.unwrap();
    // It is another table of incarnations, so the database is closed.
    let closed = async {
        while !processor.get("/ready").await.1.contains("processor-svc recover") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, closed).await.expect("the processor says why it waits");
    let client = database.pool.get().await.unwrap();
    assert!(incarnation::open(&client, "ada", "a test").await.unwrap());
    drop(client);
    // A few at a time: Redis is asked often, and on a busy machine some of its answers come in time.
    for some in after.chunks(4) {
        queue.send(some).await;
        let ids: Vec<String> = some.iter().map(|job| format!("'{}'", job.charge.payment_id)).collect();
        let called = format!("{SUCCEEDED} and payment_id in ({})", ids.join(", "));
        database.until(&called, some.len() as i64).await;
    }
    queue.send(&[all, during].concat()).await;
    database.until(SUCCEEDED, 80).await;
    assert_eq!(known.count().await, 60, "Redis was warm all the time");
    assert!(processor.metric("processor_cache_total{result=\"unconfirmed\"}").await > 0.0, "and answered");
    let parked = processor.metric("processor_jobs_total{result=\"parked\"}").await;
    assert_eq!((database.number(PARKED).await, parked), (0, 0.0));
    assert_eq!(gateway.ledger().await.len(), 80, "each was charged once");
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// A database in a file, as `pg_dump -Fc` writes it.
struct Dump {
    url: String,
    file: PathBuf,
}

impl Dump {
    fn of(database: &Database) -> Dump {
        let file = std::env::temp_dir().join(format!("processor-{}.dump", Uuid::new_v4()));
        let mut command = tool("pg_dump");
        run(command.arg("-Fc").arg("--file").arg(&file).args(["-d", &database.url]));
        Dump { url: database.url.clone(), file }
    }

    fn restore(self) {
        let mut command = tool("pg_restore");
        run(command.args(["--clean", "--exit-on-error", "-d", &self.url]).arg(&self.file));
        std::fs::remove_file(&self.file).unwrap();
    }
}

/// A program of the server that the stack runs, with the rights of the tables' owner.
fn tool(name: &str) -> Command {
    let chosen = std::env::var_os("STACK_POSTGRES").map(|folder| Path::new(&folder).join(name));
    let mut command = Command::new(chosen.unwrap_or_else(|| name.into()));
    command.env("PGOPTIONS", "-c role=none");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
