//! The gateway is out of order: the breaker opens, and payments wait at the gateway until its operators end the outage.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::stack::Stack;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::Harness;

/// Longer than any drill; its operators end it.
const OUTAGE: Duration = Duration::from_secs(3600);
/// A pause of the breaker, its probes, and a look of Prometheus.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// # Errors
/// When the alert or its end does not come, or a script fails.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let outage = json!({"for_ms": OUTAGE.as_millis() as u64, "how": "unavailable"});
    set(&harness.stack, Method::PUT, Some(&outage)).await?;
    harness.is_broken("the gateway answers 503 to everybody");
    harness.alert_fires().await?;
    harness.run_runbook(&[]).await?;
    harness.alert_ends(END_TIMEOUT).await
}

/// Ends the outage, if it has not ended.
///
/// # Errors
/// When the gateway does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    set(stack, Method::DELETE, None).await
}

async fn set(stack: &Stack, method: Method, outage: Option<&Value>) -> Result<()> {
    let url = format!("{}/outage", stack.gateway_url);
    let mut request = reqwest::Client::new().request(method, url).bearer_auth(&stack.admin_token);
    if let Some(outage) = outage {
        request = request.json(outage);
    }
    let response = request.send().await.context("the gateway's /outage")?;
    ensure!(response.status().is_success(), "the gateway's /outage: {}", response.status());
    Ok(())
}
