//! A relay that emits nothing: it confirms a slot of its own up to now, again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sql::harness::Harness;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::fixture::superuser;

pub struct Relay {
    ends: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn of(harness: &Harness) -> Self {
        Self::named(harness, &format!("{}_relay", harness.name())).await
    }

    /// With a slot of this name.
    pub async fn named(harness: &Harness, slot: &str) -> Self {
        let (client, slot) = (superuser(harness).await, slot.to_owned());
        make_slot(&client, &slot).await;
        let ends = Arc::new(AtomicBool::new(false));
        Self { ends: ends.clone(), task: tokio::spawn(confirm(client, slot, ends)) }
    }

    /// A database whose slot is read cannot be dropped.
    pub async fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

pub async fn make_slot(client: &Client, slot: &str) {
    let make = "select from pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
    client.execute(make, &[&slot]).await.unwrap();
}

pub async fn drop_slot(client: &Client, slot: &str) {
    client.execute("select pg_drop_replication_slot($1::text::name)", &[&slot]).await.unwrap();
}

async fn confirm(client: Client, slot: String, ends: Arc<AtomicBool>) {
    let version = "select current_setting('server_version_num')::int8";
    let can_log = client.query_one(version, &[]).await.unwrap().get::<_, i64>(0) >= 160_000;
    let advance = "select from pg_replication_slot_advance($1::text::name, pg_current_wal_flush_lsn())";
    let mut confirmed = 0_u64;
    while !ends.load(Ordering::Relaxed) {
        // Otherwise each advance reads all WAL of the last seconds, of every database.
        if can_log && confirmed.is_multiple_of(20) {
            client.execute("select pg_log_standby_snapshot()", &[]).await.unwrap();
        }
        client.execute(advance, &[&slot]).await.unwrap();
        confirmed += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
