//! Whether every node is there, and has its replicas.

use std::time::Duration;

use anyhow::{Context, Result};
use brokers::{Brokers, Properties};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::MetadataTopic;
use saga::contract::PAYMENT_TOPIC;
use serde_json::Value;
use stack::layout::Layout;
use stack::login::Login;
use stack::servers::{Node, Server, kafka, rabbitmq};

use super::loss::Loss;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether all servers of the stack are ready, and those of which some are lost have all of their replicas.
///
/// # Errors
/// When whoever is asked does not answer.
pub async fn are_complete(layout: Layout, loss: Loss) -> Result<bool> {
    let asked = layout.clone();
    let ready = move || Server::of(&asked).into_iter().all(|server| server.ready(&asked));
    if !tokio::task::spawn_blocking(ready).await? {
        return Ok(false);
    }
    match loss {
        Loss::Kafka => tokio::task::spawn_blocking(move || are_in_sync(&layout)).await?,
        Loss::Rabbitmq => queue_is_on_all(&layout).await,
        // Each Patroni has answered for its node.
        _ => Ok(true),
    }
}

/// Whether every partition has all of its replicas in sync, and those of payments are on each broker.
fn are_in_sync(layout: &Layout) -> Result<bool> {
    let file = kafka::client_file(layout, kafka::ADMIN).display().to_string();
    let properties = Properties::read(&file).map_err(anyhow::Error::msg)?;
    let consumer: BaseConsumer = Brokers::new(None, properties)?.config().create()?;
    let metadata = consumer.fetch_metadata(None, TIMEOUT)?;
    let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
    let payments = metadata.topics().iter().find(|topic| topic.name() == PAYMENT_TOPIC);
    let on_each = payments.is_some_and(|topic| {
        !topic.partitions().is_empty()
            && topic.partitions().iter().all(|partition| partition.replicas().len() == Node::ALL.len())
    });
    Ok(on_each && partitions.all(|partition| partition.isr().len() == partition.replicas().len()))
}

/// Whether every node has its replica of the work queue running, as the one asked sees it.
async fn queue_is_on_all(layout: &Layout) -> Result<bool> {
    let port = rabbitmq::management_port(Node::One);
    let url = layout.http(port, &format!("/api/queues/%2f/{}", rabbitmq::QUEUE));
    let login = Login::QueueAdministrator;
    let request = reqwest::Client::new().get(url).basic_auth(login.user(), Some(login.password(layout)?));
    let answer = request.timeout(TIMEOUT).send().await?.error_for_status()?;
    let queue: Value = answer.json().await?;
    Ok(queue["online"].as_array().context("the queue names no replica")?.len() == Node::ALL.len())
}
