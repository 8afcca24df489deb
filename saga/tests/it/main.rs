//! The consumer loop on a real Kafka: nothing is skipped, poison is found, order is kept.
//!
//! Each test has a topic and a group of its own.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::CancellationToken;
use saga::consumer::{
    self, Applied, ApplyError, ConsumerMetrics, Decoded, Delivery, Record, Subscriber, Subscription,
};
use saga::parked::Parked;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

fn brokers() -> String {
    std::env::var("KAFKA_BROKERS")
        .expect("KAFKA_BROKERS is not set: run `cargo stack test`, or `. .stack/env` after `cargo stack up`")
}

/// What a subscriber did, and how it is to fail.
#[derive(Default)]
struct Diary {
    /// Events applied, in order.
    applied: Vec<String>,
    parked: Vec<Parked>,
    /// Calls of `apply`.
    calls: usize,
    /// So many calls fail with an error that says nothing about the data.
    outages: usize,
    /// So many calls miss a row.
    missing: usize,
}

#[derive(Clone, Default)]
struct Reader(Arc<Mutex<Diary>>);

impl Subscriber for Reader {
    type Event = String;

    fn decode(&self, record: &Record<'_>) -> Decoded<String> {
        match std::str::from_utf8(record.body()) {
            Ok("ignore") => Decoded::Ignore,
            Ok(text) => Decoded::Event(text.to_owned()),
            Err(error) => Decoded::Poison(error.to_string()),
        }
    }

    async fn apply(
        &self,
        events: &[Delivery<'_, String>],
        unreadable: &[Parked],
    ) -> Result<Applied, ApplyError> {
        let poisoned = events.iter().any(|delivery| delivery.event == "poison");
        let refusal = if poisoned { Some(refused_by_a_constraint().await) } else { None };
        let mut diary = self.0.lock().unwrap();
        diary.calls += 1;
        if diary.outages > 0 {
            diary.outages -= 1;
            return Err(anyhow::anyhow!("the database is away").into());
        }
        if diary.missing > 0 {
            diary.missing -= 1;
            return Err(ApplyError::Missing("a row".into()));
        }
        if let Some(error) = refusal {
            return Err(error.into());
        }
        diary.applied.extend(events.iter().map(|delivery| delivery.event.clone()));
        diary.parked.extend(unreadable.iter().cloned());
        Ok(Applied { applied: events.len(), ..Applied::default() })
    }
}

/// A real error of a real Postgres: integer division by zero is class 22.
async fn refused_by_a_constraint() -> anyhow::Error {
    let url = std::env::var("POSTGRES_ADMIN_URL").expect("POSTGRES_ADMIN_URL is not set");
    let pool = saga::postgres::pool(&url, 1, "test").unwrap();
    let client = pool.get().await.unwrap();
    client.batch_execute("select 1 / 0").await.unwrap_err().into()
}

/// A topic with one partition, a running loop on it, and a way to tell.
struct Trial {
    topic: String,
    producer: BaseProducer,
    reader: Reader,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    group: String,
}

impl Trial {
    async fn new(diary: Diary) -> Self {
        let topic = format!("test-consumer-{}", Uuid::new_v4());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers());
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
        admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let producer = config.create().unwrap();
        let reader = Reader(Arc::new(Mutex::new(diary)));
        let group = format!("{topic}-group");
        let (stop, running) = start(&topic, &group, &reader);
        Self { topic, producer, reader, stop, running, group }
    }

    fn tell(&self, bodies: &[&[u8]]) {
        for body in bodies {
            let record = BaseRecord::to(&self.topic).key("key").payload(*body);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        tokio::task::block_in_place(|| self.producer.flush(PATIENCE)).unwrap();
    }

    async fn until(&self, done: impl Fn(&Diary) -> bool) {
        let began = Instant::now();
        while !done(&self.reader.0.lock().unwrap()) {
            assert!(began.elapsed() < PATIENCE, "applied: {:?}", self.reader.0.lock().unwrap().applied);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The topic and what was done.
    async fn stop(self) -> (String, Reader) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        (self.topic, self.reader)
    }

    /// A new consumer in the same group.
    async fn restart(self) -> Self {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        let (stop, running) = start(&self.topic, &self.group, &self.reader);
        Self { stop, running, ..self }
    }
}

fn start(
    topic: &str,
    group: &str,
    reader: &Reader,
) -> (CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
    let subscription = Subscription {
        brokers: brokers(),
        group_id: group.to_owned(),
        instance_id: None,
        topics: vec![topic.to_owned()],
    };
    let metrics = ConsumerMetrics::register(&prometheus::Registry::new()).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer::run(subscription, reader.clone(), metrics, stop.clone()));
    (stop, running)
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn bodies(texts: &[String]) -> Vec<&[u8]> {
    texts.iter().map(String::as_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_applied_once_in_order_over_a_restart() {
    let trial = Trial::new(Diary::default()).await;
    let told = numbers(0..500);
    trial.tell(&bodies(&told));
    trial.until(|diary| diary.applied.len() == 500).await;
    trial.tell(&[b"ignore"]);
    let trial = trial.restart().await;
    // Offsets were stored: only what is new is told.
    trial.tell(&[b"new"]);
    trial.until(|diary| diary.applied.last().is_some_and(|last| last == "new")).await;
    let (_, reader) = trial.stop().await;
    let applied = &reader.0.lock().unwrap().applied;
    assert_eq!((&applied[..500], applied.len()), (told.as_slice(), 501));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_or_a_missing_row_is_waited_for_and_nothing_is_skipped() {
    let trial = Trial::new(Diary { outages: 3, missing: 3, ..Diary::default() }).await;
    let told = numbers(0..100);
    trial.tell(&bodies(&told[..50]));
    // More comes while the loop waits with its partitions paused.
    trial.until(|diary| diary.calls >= 2).await;
    trial.tell(&bodies(&told[50..]));
    trial.until(|diary| diary.applied.len() == 100).await;
    let (_, reader) = trial.stop().await;
    let diary = reader.0.lock().unwrap();
    assert_eq!(diary.applied, told);
    assert!(diary.calls >= 7, "six failures and a success: {}", diary.calls);
    assert_eq!(diary.parked, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_found_among_hundreds_and_parked_alone() {
    let trial = Trial::new(Diary::default()).await;
    let mut told = numbers(0..200);
    told[77] = "poison".into();
    told[150] = "poison".into();
    let mut all = bodies(&told);
    all[120] = b"\xff\xfe";
    trial.tell(&all);
    trial.until(|diary| diary.applied.len() == 197 && diary.parked.len() == 3).await;
    let (topic, reader) = trial.stop().await;
    let diary = reader.0.lock().unwrap();
    let fine: Vec<String> = told
        .iter()
        .enumerate()
        .filter(|(i, text)| *i != 120 && *text != "poison")
        .map(|(_, text)| text.clone())
        .collect();
    assert_eq!(diary.applied, fine, "in order, each once");
    let by_id: HashMap<String, &Parked> = diary.parked.iter().map(|p| (p.parked_id.clone(), p)).collect();
    for (offset, body, reason) in
        [(77, b"poison".as_slice(), "division by zero"), (120, b"\xff\xfe", "utf-8")]
    {
        let parked = by_id[&format!("{topic}/0/{offset}")];
        assert_eq!((parked.body.as_slice(), parked.message_key.as_deref()), (body, Some("key")));
        assert!(parked.reason.contains(reason), "{}", parked.reason);
    }
}
