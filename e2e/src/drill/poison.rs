//! Somebody produces a record that nobody can read: payments-svc sets it aside, and an operator puts it away.

use std::time::Duration;

use anyhow::{Context, Result};
use brokers::Brokers;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use saga::contract::{BALANCE_TOPIC, EventType, HEADER_TYPE};

use super::harness::Harness;

const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);
/// A count of the service, a scrape and a look of Prometheus.
const END_TIMEOUT: Duration = Duration::from_secs(90);

/// # Errors
/// When the alert or its end does not come, or a script fails.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let parked_id = produce(harness).await?;
    harness.is_broken(&format!("{parked_id} is no event"));
    harness.alert_fires().await?;
    let variables = [
        ("DATABASE", "payments"),
        ("ID", parked_id.as_str()),
        ("REASON", "a drill: no event, and nobody waits for it"),
        ("CORO_OPERATOR", "drill"),
    ];
    harness.run_runbook(&variables).await?;
    harness.alert_ends(END_TIMEOUT).await
}

/// Produces the record under the key of a user who pays meanwhile, so that payments are behind it; returns its place.
async fn produce(harness: &Harness) -> Result<String> {
    let paid = harness.load.accepted().pop().context("nobody pays")?;
    let producer: FutureProducer =
        Brokers::from_env("KAFKA_ADMIN_CONFIG")?.config().set("partitioner", "murmur2_random").create()?;
    let kind = Header { key: HEADER_TYPE, value: Some(EventType::BalanceHeld.as_str()) };
    let headers = OwnedHeaders::new().insert(kind);
    let key = paid.user_id.to_string();
    let record = FutureRecord::to(BALANCE_TOPIC).key(&key).payload("not json").headers(headers);
    let produced = producer.send(record, PRODUCE_TIMEOUT).await;
    let at = produced.map_err(|(error, _)| error).context("cannot produce as the administrator")?;
    Ok(format!("{BALANCE_TOPIC}/{}/{}", at.partition, at.offset))
}
