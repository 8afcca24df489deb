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

/// Has the server write down which transactions run, as it does when a slot is made; whether that one is made in time does not matter.
/// Each advance of a slot reads WAL from the last but one of these records on, and by themselves they are 15 seconds apart.
async fn log_running(client: &Client, slot: &str) {
    let make = "select from pg_create_logical_replication_slot($1::text::name, 'pgoutput', true)";
    client.batch_execute("set statement_timeout = '50ms'").await.unwrap();
    let made = client.execute(make, &[&slot]).await;
    client.batch_execute("set statement_timeout = 0").await.unwrap();
    if made.is_ok() {
        drop_slot(client, slot).await;
    }
}

async fn confirm(client: Client, slot: String, ends: Arc<AtomicBool>) {
    let advance = "select from pg_replication_slot_advance($1::text::name, pg_current_wal_flush_lsn())";
    let beside = format!("{slot}_beside");
    let mut confirmed = 0_u64;
    while !ends.load(Ordering::Relaxed) {
        if confirmed.is_multiple_of(50) {
            log_running(&client, &beside).await;
        }
        client.execute(advance, &[&slot]).await.unwrap();
        confirmed += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
