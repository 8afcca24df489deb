//! Checks whether the queues of RabbitMQ keep the messages that they confirmed.

use std::time::Duration;

use anyhow::{Context, Result};
use brokers::rabbitmq;
use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use crate::commands::doctor::finding::Finding;
use crate::routes::Routes;
use crate::sinks::rabbit;

const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of a queue of the routes file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queue {
    Missing,
    /// Declared with the relay's own arguments.
    Ours {
        messages: u32,
        consumers: u32,
    },
    /// Declared with others; the broker says which differ.
    Otherwise(String),
}

pub fn check(queues: &[(String, Queue)]) -> Vec<Finding> {
    queues.iter().map(|(name, queue)| of_queue(name, queue)).collect()
}

fn of_queue(name: &str, queue: &Queue) -> Finding {
    let subject = format!("queue {name}");
    match queue {
        Queue::Missing => Finding::ok("rabbitmq.queue", &subject, "does not exist; `cdc-relay run` makes it"),
        Queue::Ours { messages, consumers } => Finding::ok(
            "rabbitmq.queue",
            &subject,
            format!("quorum, no delivery limit; {messages} messages, {consumers} consumers"),
        ),
        Queue::Otherwise(how) => Finding::would_lose_data(
            "rabbitmq.queue",
            &subject,
            "was not declared as the relay does it",
        )
        .why(format!(
            "only a quorum queue survives the loss of a broker, and a delivery limit drops messages ({how})"
        ))
        .fix(format!("empty it, then: rabbitmqctl delete_queue {name}   -- `cdc-relay run` makes it again")),
    }
}

/// Queries the queues; creates none.
pub async fn ask(uri: &str, routes: &Routes) -> Result<Vec<(String, Queue)>> {
    let connection = rabbitmq::connect(uri, "cdc-relay doctor", STEP_TIMEOUT).await?;
    let mut found = Vec::new();
    for queue in &routes.queues {
        let name = queue.name.get_ref();
        found.push((name.clone(), query(&connection, name).await?));
    }
    let _ = timeout(STEP_TIMEOUT, connection.close(200, "done".into())).await;
    Ok(found)
}

/// On channels of its own: a refusal closes the channel.
async fn query(connection: &Connection, name: &str) -> Result<Queue> {
    let channel =
        timeout(STEP_TIMEOUT, connection.create_channel()).await.context("RabbitMQ does not answer")??;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let there = channel.queue_declare(name.into(), passive, FieldTable::default());
    let Ok(queue) = timeout(STEP_TIMEOUT, there).await.context("RabbitMQ does not answer")? else {
        return Ok(Queue::Missing);
    };
    // It is there, so that declaring it only compares.
    let (options, arguments) = rabbit::declaration();
    let same = timeout(STEP_TIMEOUT, channel.queue_declare(name.into(), options, arguments)).await;
    Ok(match same.context("RabbitMQ does not answer")? {
        Ok(_) => Queue::Ours { messages: queue.message_count(), consumers: queue.consumer_count() },
        Err(error) => Queue::Otherwise(error.to_string()),
    })
}
