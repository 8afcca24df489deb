//! Caches in Redis which charges have ended, so that a duplicate message costs one read of its row instead of an insert.
//!
//! * A hit decides nothing: the caller reads the database, whose rows may be older than Redis after a restore.
//! * Only committed outcomes are written. The key names the database, its timeline and the charge, so that another charge
//!   under the same payment is no duplicate.
//! * Flushing, stopping or restoring Redis changes latency, never an outcome. An answer that takes more than a few
//!   milliseconds counts as unknown.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::charge::Charge;
use crate::metrics::Metrics;

const ANSWER_TIMEOUT: Duration = Duration::from_millis(5);
/// Nobody waits for a write, so it may take longer. After that it is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct EndedCache {
    connection: Arc<OnceLock<ConnectionManager>>,
    /// Identity of the database whose outcomes these are; `None` while it is unknown.
    identity: Arc<Mutex<Option<Arc<str>>>>,
    ttl: Duration,
    metrics: Metrics,
}

impl EndedCache {
    /// Connects in the background and stays connected.
    ///
    /// # Errors
    /// When the URL is malformed.
    pub fn new(
        url: &str,
        ttl: Duration,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> anyhow::Result<EndedCache> {
        let client = redis::Client::open(url)?;
        let connection = Arc::new(OnceLock::new());
        let ended_cache =
            EndedCache { connection: connection.clone(), identity: Arc::default(), ttl, metrics };
        tokio::spawn(async move {
            let connected = async {
                loop {
                    let config = ConnectionManagerConfig::new()
                        .set_connection_timeout(Some(CONNECT_TIMEOUT))
                        .set_response_timeout(Some(WRITE_TIMEOUT))
                        .set_max_delay(RECONNECT_INTERVAL);
                    match ConnectionManager::new_with_config(client.clone(), config).await {
                        Ok(manager) => return manager,
                        Err(error) => {
                            tracing::debug!(%error, "cannot connect to Redis; duplicates cost an insert until it is back");
                        }
                    }
                    tokio::time::sleep(RECONNECT_INTERVAL).await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                manager = connected => { let _ = connection.set(manager); }
            }
        });
        Ok(ended_cache)
    }

    /// Sets the identity of the database. With `None` nothing is looked up or written.
    pub fn set_identity(&self, identity: Option<&str>) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity.map(Into::into);
    }

    /// The payments of those charges that have ended according to Redis.
    pub async fn find(&self, charges: &[&Charge]) -> HashSet<Uuid> {
        let (Some(mut connection), Some(keys)) = (self.connection.get().cloned(), self.keys(charges)) else {
            return HashSet::new();
        };
        let asked = connection.mget::<_, Vec<Option<u8>>>(&keys);
        let known: HashSet<Uuid> = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(found)) => {
                charges.iter().zip(found).filter_map(|(charge, hit)| hit.map(|_| charge.payment_id)).collect()
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a lookup in Redis failed; its messages count as unknown");
                return self.failed(charges);
            }
            Err(_) => return self.failed(charges),
        };
        let cache = &self.metrics.work.cache;
        cache.with_label_values(&["hit"]).inc_by(known.len() as u64);
        cache.with_label_values(&["miss"]).inc_by((charges.len() - known.len()) as u64);
        known
    }

    fn failed(&self, charges: &[&Charge]) -> HashSet<Uuid> {
        self.metrics.work.cache.with_label_values(&["failed"]).inc_by(charges.len() as u64);
        HashSet::new()
    }

    /// Saves charges whose terminal outcome is committed. Does not wait for Redis.
    pub fn save(&self, charges: &[&Charge]) {
        let (Some(mut connection), Some(keys)) = (self.connection.get().cloned(), self.keys(charges)) else {
            return;
        };
        let ttl = self.ttl.as_secs();
        let failures = self.metrics.failures.clone();
        tokio::spawn(async move {
            let mut pipe = redis::pipe();
            for key in &keys {
                pipe.set_ex(key, 1, ttl).ignore();
            }
            let written = tokio::time::timeout(WRITE_TIMEOUT, pipe.query_async::<()>(&mut connection)).await;
            if !matches!(written, Ok(Ok(()))) {
                Metrics::count(&failures, "redis");
            }
        });
    }

    fn keys(&self, charges: &[&Charge]) -> Option<Vec<String>> {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let keys =
            charges.iter().map(|charge| format!("processor/{identity}/ended/{}", charge.fingerprint()));
        (!charges.is_empty()).then(|| keys.collect())
    }
}
