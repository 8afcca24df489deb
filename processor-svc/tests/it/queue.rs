//! A work queue of a test's own.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use processor_svc::work::Job;
use uuid::Uuid;

use crate::harness::{Database, Gateway, Processor, WAIT_TIMEOUT, env, flags};

pub struct Queue {
    pub name: String,
    connection: Connection,
    channel: Channel,
}

impl Queue {
    /// Connected, but not declared.
    pub async fn unborn() -> Queue {
        let connection =
            Connection::connect(&env("AMQP_URL"), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Queue { name: format!("test-{}", Uuid::new_v4().simple()), connection, channel }
    }

    pub async fn new() -> Queue {
        let queue = Queue::unborn().await;
        queue.declare(false).await;
        queue
    }

    /// Declares it, or only asks for the number of messages in it.
    pub async fn declare(&self, passive: bool) -> u32 {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, passive, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(self.name.as_str().into(), options, arguments).await;
        declared.unwrap().message_count()
    }

    pub async fn publish(&self, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let name = self.name.as_str().into();
        self.channel.basic_publish("".into(), name, options, body, properties).await.unwrap();
    }

    pub async fn send(&self, jobs: &[Job]) {
        for job in jobs {
            let mut headers = FieldTable::default();
            if let Some(at) = job.expires_at {
                headers.insert("expires_at".into(), AMQPValue::LongString(at.to_string().into()));
            }
            let properties = BasicProperties::default()
                .with_type("payment.authorized.v1".into())
                .with_message_id(format!("payments/payments/{}/2", job.charge.payment_id).into())
                .with_headers(headers);
            self.publish(&body(job), properties).await;
        }
    }

    /// Until nothing is left in it. Messages that were sent twice may have been handed to a processor that stopped before it came
    /// to them; they went back, and the next one drops them.
    pub async fn until_taken(&self, flags: &[String]) {
        let emptied = async {
            while self.declare(true).await > 0 {
                let processor = Processor::with(flags.to_vec()).await;
                while self.declare(true).await > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                processor.end().await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, emptied).await.expect("messages are left");
    }

    /// Nothing is left in it, nothing is unacknowledged: it can be deleted if empty after its consumers left.
    pub async fn end(self) {
        assert_eq!(self.declare(true).await, 0, "messages are left");
        self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        self.connection.close(200, "done".into()).await.unwrap();
    }
}

pub fn body(job: &Job) -> Vec<u8> {
    let charge = &job.charge;
    format!(
        r#"{{"payload":{{"user_id":"{}","client_number":"{}","service_id":"{}","amount":"{}","transaction_id":"{}"}}}}"#,
        charge.user_id, charge.client_number, charge.service_id, charge.amount, charge.payment_id
    )
    .into_bytes()
}

/// Flags of a processor that takes its work from `queue`.
pub fn with_queue(database: &Database, gateway: &Gateway, queue: &Queue, redis: &str) -> Vec<String> {
    let mut flags = flags(&database.url, &gateway.address.to_string(), &env("AMQP_URL"), redis);
    flags.push(format!("--queue={}", queue.name));
    flags
}
