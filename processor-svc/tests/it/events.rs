//! Requests to cancel as they are told on Kafka, to a whole processor.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::contract::{HEADER_TYPE, PAYMENT_TOPIC};
use uuid::Uuid;

use crate::world::{Database, Gateway, NOWHERE, Processor, env, flags, job};

const PATIENCE: Duration = Duration::from_secs(30);

/// The payments topic of a test's own.
struct Topic {
    prefix: String,
    producer: BaseProducer,
}

impl Topic {
    async fn new() -> Topic {
        let prefix = format!("test-{}-", Uuid::new_v4());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", env("KAFKA_BROKERS"));
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let name = format!("{prefix}{PAYMENT_TOPIC}");
        let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
        admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        Topic { prefix, producer: config.create().unwrap() }
    }

    fn tell(&self, kind: &str, body: &str) {
        let topic = format!("{}{PAYMENT_TOPIC}", self.prefix);
        let headers = OwnedHeaders::new().insert(Header { key: HEADER_TYPE, value: Some(kind) });
        let record = BaseRecord::to(&topic).key("user").payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(PATIENCE)).unwrap();
    }

    fn flags(&self) -> [String; 3] {
        [
            format!("--kafka-brokers={}", env("KAFKA_BROKERS")),
            format!("--topic-prefix={}", self.prefix),
            format!("--group-id={}", self.prefix),
        ]
    }
}

fn golden(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_and_an_absent_charge_end_cancelled_and_are_never_made() {
    let (database, gateway, topic) = (Database::new().await, Gateway::new().await, Topic::new().await);
    let waiting = job("5551234");
    let store = database.store(Duration::from_millis(1));
    store.admit(&[&waiting], &[]).await.unwrap();
    // Not called again for so long that the cancel comes first.
    database
        .query("update charges set status = 'waiting', version = 2, lease_until = now() + interval '1 h'")
        .await;
    let kind = "payment.cancel_requested.v1";
    let absent = golden(kind);
    let charge = &waiting.charge;
    let of_waiting = absent
        .replace("0198c0de-0000-7000-8000-000000000001", &charge.user_id.to_string())
        .replace("0198c0de-0000-7000-8000-000000000002", &charge.payment_id.to_string())
        .replace("081234567890", &charge.client_number)
        .replace("electricity", &charge.service_id);

    let (amqp, redis) = (format!("amqp://{NOWHERE}/%2f"), format!("redis://{NOWHERE}"));
    let mut flags = flags(&database.url, &gateway.address.to_string(), &amqp, &redis);
    flags.retain(|flag| !flag.starts_with("--kafka-brokers"));
    flags.extend(topic.flags());
    let processor = Processor::with(flags).await;
    topic.tell("payment.authorized.v1", &golden("payment.authorized.v1"));
    topic.tell(kind, "{}");
    for _ in 0..2 {
        topic.tell(kind, &absent);
        topic.tell(kind, &of_waiting);
    }
    let records = async |outcome: &str| {
        processor.metric(&format!("consumer_records_total{{outcome=\"{outcome}\"}}")).await
    };
    let heard = async {
        while records("applied").await + records("already").await < 4.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("four requests are heard");
    assert_eq!((records("applied").await, records("already").await), (2.0, 2.0));
    assert_eq!((records("ignored").await, records("parked").await), (1.0, 1.0));
    let rows = "select count(*) from charges where status = 'cancelled' and reason = 'cancel_requested'";
    assert_eq!(database.number(rows).await, 2);
    assert_eq!(
        database.number("select count(*) from parked where type = 'payment.cancel_requested.v1'").await,
        1
    );
    assert_eq!(processor.metric("processor_transitions_total{to=\"cancelled\"}").await, 2.0);
    processor.end().await;
    assert_eq!(gateway.ledger().await, []);
    gateway.end().await;
    database.end().await;
}
