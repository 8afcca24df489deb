//! The relay is stopped, and stays down: nothing is emitted, payments wait, and new ones are refused once they wait too long.

use std::time::Duration;

use anyhow::Result;

use super::harness::Harness;

/// A start, a scrape and a look of Prometheus.
const END_TIMEOUT: Duration = Duration::from_secs(90);

/// # Errors
/// When the alert or its end does not come, or a script fails.
pub async fn play(harness: &mut Harness) -> Result<()> {
    harness.cargo_stack(&["stop", "cdc-relay"]).await?;
    harness.is_broken("the relay is down");
    harness.alert_fires().await?;
    harness.run_runbook(&[]).await?;
    harness.alert_ends(END_TIMEOUT).await
}
