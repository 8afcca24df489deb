//! The topics of a test's own.

use std::time::Duration;

use brokers::Brokers;
use jiff::Timestamp;
use processor_svc::work::Job;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::contract::{HEADER_TYPE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

use crate::harness::env;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Topic {
    pub prefix: String,
    producer: BaseProducer,
}

impl Topic {
    pub async fn new() -> Topic {
        let prefix = format!("test-{}-", Uuid::new_v4());
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        for topic in [PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC] {
            let name = format!("{prefix}{topic}");
            let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        Topic { prefix, producer: config.create().unwrap() }
    }

    /// An event of a payment, under the key of the user that the body names, as the relay does.
    pub fn produce(&self, kind: &str, body: &str) {
        self.produce_at(Timestamp::now(), kind, body);
    }

    pub fn produce_at(&self, at: Timestamp, kind: &str, body: &str) {
        let named: Option<serde_json::Value> = serde_json::from_str(body).ok();
        let user = named.and_then(|body| Some(body["user_id"].as_str()?.to_owned()));
        let key = user.as_deref().unwrap_or("user");
        self.send(at, PAYMENT_TOPIC, key, &[(HEADER_TYPE, kind)], body);
    }

    pub fn produce_under(&self, key: &str, kind: &str, body: &str) {
        self.produce_on(PAYMENT_TOPIC, key, &[(HEADER_TYPE, kind)], body);
    }

    pub fn produce_on(&self, topic: &str, key: &str, headers: &[(&str, &str)], body: &str) {
        self.send(Timestamp::now(), topic, key, headers, body);
    }

    fn send(&self, at: Timestamp, topic: &str, key: &str, headers: &[(&str, &str)], body: &str) {
        let topic = format!("{}{topic}", self.prefix);
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let record = BaseRecord::to(&topic).key(key).payload(body).timestamp(at.as_millisecond());
        self.producer.send(record.headers(headers)).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(FLUSH_TIMEOUT)).unwrap();
    }

    /// `flags` of a processor that reads this topic.
    pub fn reading(&self, mut flags: Vec<String>) -> Vec<String> {
        flags.retain(|flag| !flag.starts_with("--kafka-brokers"));
        flags.push(format!("--kafka-brokers={}", env("KAFKA_BROKERS")));
        flags.push(format!("--topic-prefix={}", self.prefix));
        flags.push(format!("--group-id={}", self.prefix));
        flags
    }
}

pub const CANCEL_REQUESTED: &str = "payment.cancel_requested.v1";

/// The request to cancel this charge, as the relay emits it.
pub fn cancel_request(job: &Job) -> String {
    let charge = &job.charge;
    golden(CANCEL_REQUESTED)
        .replace("0198c0de-0000-7000-8000-000000000001", &charge.user_id.to_string())
        .replace("0198c0de-0000-7000-8000-000000000002", &charge.payment_id.to_string())
        .replace("081234567890", &charge.client_number)
        .replace("electricity", &charge.service_id)
}

pub fn golden(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}
