//! Makes one payment through the edge: the whole saga once, from outside. `cargo stack up` ends with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::client::Client;
use crate::explain;
use crate::stack::Stack;

const AMOUNT: i64 = 15_000;
const DEPOSIT: i64 = 1_000_000;
/// A fresh stack may still be joining consumer groups.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Deposits, pays and waits for the end; returns the payment's life.
///
/// # Errors
/// When a request is refused, or the payment does not complete in time.
pub async fn run(stack: &Stack) -> Result<String> {
    let client = Client::new(&stack.through_edge())?;
    let user_id: Uuid = stack.demo_user_id.parse().context("DEMO_USER_ID is no UUID")?;
    client.deposit(user_id, DEPOSIT, "demo").await?;
    let payment_id = client.pay(user_id, "081234567890", AMOUNT).await?;
    let payment = client.wait_for_end(user_id, payment_id, WAIT_TIMEOUT).await?;
    let life = explain::life(stack, payment_id).await?.to_string();
    ensure!(
        payment["status"] == "completed",
        "the first payment ended as {}, not completed:\n{life}",
        payment["status"]
    );
    Ok(life)
}
