//! A closed database gives out no connection: neither a new one nor one that a pool has open.
//!
//! That a restored dump, another timeline and a copy close a database is tested where its tables are (`sql/tests/databases.rs`), where
//! it is recovered (`balance-svc/tests/it/recovery.rs`), and by the drill `restore`.

use std::time::{Duration, Instant};

use deadpool_postgres::PoolError;
use saga::incarnation::{self, CHECK_INTERVAL};
use saga::postgres::{self, Client, Pool, guarded_pool, reachable};
use sql::Database;
use sql::harness::Harness;

/// Far more than a pool takes to notice anything.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE: &str = "update incarnations set incarnation = incarnation || ' closed at ' || now()";

/// A connection, or why there is none. A busy machine may take longer for one than a service waits: then it is asked for again.
async fn connection(pool: &Pool) -> Result<Client, String> {
    let began = Instant::now();
    loop {
        match pool.get().await {
            Err(PoolError::Timeout(_) | PoolError::Backend(_)) if began.elapsed() < NOTICE_TIMEOUT => {}
            answer => return answer.map_err(|error| error.to_string()),
        }
    }
}

/// A database that its service reaches by a pool.
struct Guarded {
    harness: Harness,
    pool: Pool,
}

impl Guarded {
    async fn new(size: usize) -> Self {
        let harness = Harness::new(Database::Balance).await.unwrap();
        let pool = guarded_pool(&harness.service_url().unwrap(), size, "balance-svc").unwrap();
        Self { harness, pool }
    }

    /// As the owner of the tables.
    async fn change(&self, statement: &str) {
        self.harness.owner().await.unwrap().batch_execute(statement).await.unwrap();
    }

    /// Why there is no connection.
    async fn refusal(&self) -> String {
        connection(&self.pool).await.map(drop).expect_err("a closed database gives out no connection")
    }

    async fn finish(self) {
        self.pool.close();
        self.harness.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_closed_database_gives_out_no_connection_and_says_what_to_do() {
    let guarded = Guarded::new(2).await;
    drop(connection(&guarded.pool).await.unwrap());
    guarded.change(CLOSE).await;
    // A process that starts now, and one that only asks whether the database is there.
    let later = guarded_pool(&guarded.harness.service_url().unwrap(), 2, "balance-svc").unwrap();
    let refusal = connection(&later).await.map(drop).unwrap_err();
    let (began, mut unreachable) = (Instant::now(), reachable(&later).await.unwrap_err());
    // As above.
    while unreachable.starts_with("no database connection") && began.elapsed() < NOTICE_TIMEOUT {
        unreachable = reachable(&later).await.unwrap_err();
    }
    for said in [&refusal, &unreachable] {
        assert!(said.contains("run `balance-svc recover`"), "{said}");
    }
    // `recover` itself uses another pool.
    let recovery = postgres::pool(&guarded.harness.service_url().unwrap(), 1, "balance-svc recover").unwrap();
    recovery.get().await.unwrap().batch_execute("select from ledger limit 1").await.unwrap();
    for pool in [later, recovery] {
        pool.close();
    }
    guarded.finish().await;
}

#[tokio::test]
async fn a_new_connection_asks_although_the_database_was_open_a_moment_ago() {
    let guarded = Guarded::new(2).await;
    let first = connection(&guarded.pool).await.unwrap();
    guarded.change(CLOSE).await;
    // It may lead to another server, so what the first one found says nothing about it.
    assert!(guarded.refusal().await.contains("balance-svc recover"));
    drop(first);
    guarded.finish().await;
}

#[tokio::test]
async fn an_open_connection_asks_again_after_the_interval() {
    let guarded = Guarded::new(1).await;
    drop(connection(&guarded.pool).await.unwrap());
    guarded.change(CLOSE).await;
    let began = Instant::now();
    while connection(&guarded.pool).await.is_ok() {
        assert!(began.elapsed() < NOTICE_TIMEOUT, "the pool hands out the connection that it has");
        tokio::time::sleep(CHECK_INTERVAL / 20).await;
    }
    assert!(guarded.refusal().await.contains("balance-svc recover"), "and it stays so");
    guarded.finish().await;
}

#[tokio::test]
async fn a_closed_database_is_not_asked_without_pause() {
    let guarded = Guarded::new(1).await;
    guarded.change(CLOSE).await;
    let began = Instant::now();
    for _ in 0..5 {
        guarded.refusal().await;
    }
    assert!(began.elapsed() >= Duration::from_millis(500), "five connections in {:?}", began.elapsed());
    guarded.finish().await;
}

#[tokio::test]
async fn a_database_that_cannot_say_which_one_it_is_gives_out_no_connection() {
    let guarded = Guarded::new(1).await;
    // As on a standby, where it fails.
    guarded.change("alter function incarnation() rename to incarnation_of_before").await;
    guarded.refusal().await;
    guarded.change("alter function incarnation_of_before() rename to incarnation").await;
    drop(connection(&guarded.pool).await.unwrap());
    guarded.finish().await;
}

#[tokio::test]
async fn a_database_that_was_opened_serves_at_once_and_keeps_who_opened_it_and_why() {
    let guarded = Guarded::new(1).await;
    guarded.change(CLOSE).await;
    guarded.refusal().await;
    let service = postgres::pool(&guarded.harness.service_url().unwrap(), 1, "test").unwrap();
    let client = service.get().await.unwrap();
    assert!(!incarnation::read(&client).await.unwrap().is_open);
    assert!(incarnation::open(&client, "ada", "a test").await.unwrap());
    assert!(!incarnation::open(&client, "bob", "once more").await.unwrap(), "it is open");
    assert!(incarnation::read(&client).await.unwrap().is_open);
    drop(connection(&guarded.pool).await.unwrap());
    let kept = "select operator || ': ' || reason from incarnations where incarnation = incarnation()";
    assert_eq!(client.query_one(kept, &[]).await.unwrap().get::<_, String>(0), "ada: a test");
    drop(client);
    service.close();
    guarded.finish().await;
}
