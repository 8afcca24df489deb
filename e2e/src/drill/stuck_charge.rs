//! The gateway charges a payment and never says so: its outcome stays unknown until two operators say what the gateway's
//! own pages say.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use super::harness::Harness;
use super::script;

/// Charged, then a server error, to the call and to every inquiry (`gateway-sim/src/script.rs`).
const CLIENT_NUMBER: &str = "0812-thenhttp500-askhttp500x1000000";
const AMOUNT: i64 = 15_000;
const CHARGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A look of the processor, a scrape and a look of Prometheus.
const END_TIMEOUT: Duration = Duration::from_secs(90);
const OPERATOR: (&str, &str) = ("CORO_OPERATOR", "drill-one");
const SECOND_OPERATOR: (&str, &str) = ("SECOND_OPERATOR", "drill-two");

/// # Errors
/// When the alert or its end does not come, or a script fails.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let payment_id = harness.pay(CLIENT_NUMBER, AMOUNT).await?;
    harness.is_broken(&format!("the gateway never says what became of {payment_id}"));
    harness.alert_fires().await?;
    let reference = on_the_gateways_pages(harness, payment_id).await?;
    let evidence = format!("--succeeded {reference} --amount {AMOUNT}");
    let payment = payment_id.to_string();
    let variables =
        [("PAYMENT_ID", payment.as_str()), ("EVIDENCE", &evidence), ("REASON", "a drill"), OPERATOR];
    let section = harness.section()?;
    let [propose, confirm] = section.acts.as_slice() else {
        anyhow::bail!("{} proposes and confirms by two scripts", section.heading)
    };
    harness.run_script(&section, propose, &variables).await?;
    let proposal = proposal(&payment).await?;
    let proposal = [("RESOLUTION_ID", proposal.as_str()), SECOND_OPERATOR];
    harness.run_script(&section, confirm, &[variables.as_slice(), &proposal].concat()).await?;
    harness.alert_ends(END_TIMEOUT).await
}

/// The gateway's own id of the charge, as its people see it.
async fn on_the_gateways_pages(harness: &Harness, payment_id: Uuid) -> Result<String> {
    let payment = payment_id.to_string();
    let of_payment = |line: &&Value| line["reference"] == payment.as_str() && line["kind"] == "charge";
    let is_there = async || Ok(harness.client.gateway_ledger().await?.iter().any(|line| of_payment(&line)));
    harness.until(CHARGE_TIMEOUT, "the charge", is_there).await?;
    let ledger = harness.client.gateway_ledger().await?;
    let charge = ledger.iter().find(of_payment).context("a charge in the gateway's ledger")?;
    let reference = charge["provider_reference"].as_str().context("provider_reference")?;
    Ok(reference.to_owned())
}

/// The proposal that waits for a confirmation.
async fn proposal(payment_id: &str) -> Result<String> {
    const LIST: &str = "coroctl resolve list --payment \"$PAYMENT_ID\" --json";
    let printed = script::run(LIST, &[("PAYMENT_ID", payment_id)]).await?;
    let listed: Value = serde_json::from_str(&printed).context("resolve list")?;
    let proposals = listed["resolutions"].as_array().context("resolutions")?;
    ensure!(proposals.len() == 1, "{} proposals for {payment_id}, not one", proposals.len());
    Ok(proposals[0]["resolution_id"].as_str().context("resolution_id")?.to_owned())
}
