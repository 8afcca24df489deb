//! Counts the parked messages that wait for an operator, for the alert that asks for one.
//!
//! * A message waits until it is retried or dismissed. So the alert ends with what its runbook says, and not with the hour.
//! * A process that cannot count shows nothing: an old figure would look like messages that wait.

use std::time::Duration;

use anyhow::Context;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

use crate::postgres;
use crate::shards::Databases;
use crate::telemetry::log_text;

const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const HELP: &str = "Parked messages that no operator has retried or dismissed; at most 1000 are counted, and every instance \
    reports the same. Worry above 0: `coroctl parked list`.";

// Nearly always nothing is parked, and the limit bounds what an attack may cost.
const OPEN: &str = "
    select count(*) from (
        select from parked p where not exists (select from parked_acts a where a.parked_id = p.parked_id) limit 1000
    ) as open";

/// The count of a service's own databases. While one of them is away, there is none.
pub struct OpenMessages {
    databases: Databases,
    /// Without labels. It has no value before the first count, since 0 would say that nobody has to look.
    count: IntGaugeVec,
}

impl OpenMessages {
    /// # Errors
    /// When the registry has the gauge already.
    pub fn register(databases: impl Into<Databases>, registry: &Registry) -> anyhow::Result<Self> {
        let count = IntGaugeVec::new(Opts::new("parked_messages_open", HELP), &[])?;
        registry.register(Box::new(count.clone()))?;
        Ok(Self { databases: databases.into(), count })
    }

    /// Counts once per interval, until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.look().await {
                self.count.reset();
                tracing::debug!(
                    error = log_text(&error),
                    "parked messages cannot be counted; it is tried again"
                );
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// Counts once; the gauge has the result.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&self) -> anyhow::Result<()> {
        let mut open: i64 = 0;
        for pool in self.databases.pools() {
            let count = postgres::query(&pool, OPEN, &[], "cannot count parked messages");
            let rows = self.databases.in_time(count).await?;
            open += rows.first().context("a count is one row")?.get::<_, i64>(0);
        }
        self.count.with_label_values::<&str>(&[]).set(open);
        Ok(())
    }
}
