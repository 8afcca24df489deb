//! Topics, groups and subscribers of a test's own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use brokers::Brokers;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use saga::CancellationToken;
use saga::consumer::{
    self, ApplyError, BatchCounts, ConsumerMetrics, Decoding, Delivery, Limits, MissingRow, Record,
    Subscriber, Subscription,
};
use saga::parked::Parked;
use uuid::Uuid;

pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

fn brokers() -> String {
    std::env::var("KAFKA_BROKERS")
        .expect("KAFKA_BROKERS is not set: run `cargo stack test`, or `. .stack/env` after `cargo stack up`")
}

/// The effects of a subscriber, and how it is to fail.
#[derive(Default)]
pub struct SubscriberState {
    /// Events applied, in order.
    pub applied: Vec<String>,
    pub parked: Vec<Parked>,
    /// Calls of `apply`.
    pub calls: usize,
    /// So many calls fail with an error that says nothing about the data.
    pub outages: usize,
    /// So many calls fail with this SQLSTATE.
    pub refusals: Vec<&'static str>,
    /// Until this is false nothing can be applied.
    pub away: bool,
    /// Whether the row of `X` is made by the event `make X`, so that it is missing before.
    pub needs_rows: bool,
    /// The users of these events are being moved to another shard.
    pub moving: BTreeSet<&'static str>,
    /// The databases of the users of these events are away.
    pub absent: BTreeSet<&'static str>,
    /// So many events that begin with `slow` can be applied at once, if there is a limit.
    pub slow_max: Option<usize>,
    /// Events have to wait, and it is not said which.
    pub names_nothing: bool,
}

/// The service's side of a test. `poison` is refused by a constraint, `ignore` is ignored.
#[derive(Clone, Default)]
pub struct Reader(Arc<Mutex<SubscriberState>>);

impl Reader {
    pub fn new(state: SubscriberState) -> Reader {
        Reader(Arc::new(Mutex::new(state)))
    }

    pub fn state(&self) -> MutexGuard<'_, SubscriberState> {
        self.0.lock().unwrap()
    }

    pub async fn until(&self, done: impl Fn(&SubscriberState) -> bool) {
        let began = Instant::now();
        while !done(&self.state()) {
            let state = self.state();
            assert!(
                began.elapsed() < WAIT_TIMEOUT,
                "applied: {:?}, parked: {:?}",
                state.applied,
                state.parked
            );
            drop(state);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Subscriber for Reader {
    type Event = String;
    const WRITES_TO: &'static str = "database";

    fn decode(&self, record: &Record<'_>) -> Decoding<String> {
        match std::str::from_utf8(record.body()) {
            Ok("ignore") => Decoding::Ignore,
            Ok(text) => Decoding::Event(text.to_owned()),
            Err(error) => Decoding::Poison(error.to_string()),
        }
    }

    async fn apply(
        &self,
        events: &[Delivery<'_, String>],
        unreadable: &[Parked],
    ) -> Result<BatchCounts, ApplyError> {
        let refusal = match self.state().refusals.pop() {
            None if events.iter().any(|delivery| delivery.event == "poison") => Some("23514"),
            refusal => refusal,
        };
        if let Some(state) = refusal {
            self.state().calls += 1;
            return Err(refused(state).await.into());
        }
        let mut state = self.state();
        state.calls += 1;
        if state.away || state.outages > 0 {
            state.outages = state.outages.saturating_sub(1);
            return Err(anyhow::anyhow!("the database is away").into());
        }
        if state.names_nothing {
            return Err(ApplyError::Absent(Vec::new()));
        }
        let among = |set: &BTreeSet<&str>| -> Vec<usize> {
            (0..events.len()).filter(|&index| set.contains(events[index].event.as_str())).collect()
        };
        let (absent, moving) = (among(&state.absent), among(&state.moving));
        if !absent.is_empty() {
            return Err(ApplyError::Absent(absent));
        }
        if !moving.is_empty() {
            return Err(ApplyError::Moving(moving));
        }
        let slow: Vec<usize> =
            (0..events.len()).filter(|&index| events[index].event.starts_with("slow")).collect();
        if state.slow_max.is_some_and(|slow_max| slow.len() > slow_max) {
            return Err(ApplyError::Late(slow));
        }
        let rows: BTreeSet<&str> =
            state.applied.iter().filter_map(|text| text.strip_prefix("make ")).collect();
        let missing = events.iter().enumerate().filter(|(_, delivery)| {
            let makes = delivery.event.starts_with("make ");
            state.needs_rows && !makes && !rows.contains(delivery.event.as_str())
        });
        let missing: Vec<MissingRow> = missing
            .map(|(index, delivery)| MissingRow { index, what: format!("row {}", delivery.event) })
            .collect();
        if !missing.is_empty() {
            return Err(ApplyError::Missing(missing));
        }
        state.applied.extend(events.iter().map(|delivery| delivery.event.clone()));
        state.parked.extend(unreadable.iter().cloned());
        Ok(BatchCounts { applied: events.len(), ..BatchCounts::default() })
    }
}

/// An error of a real Postgres with this SQLSTATE.
async fn refused(state: &str) -> anyhow::Error {
    let url = std::env::var("POSTGRES_ADMIN_URL").expect("POSTGRES_ADMIN_URL is not set");
    let client = sql::connect(&url).await.unwrap();
    let raise = format!("do $$ begin raise exception 'refused as {state}' using errcode = '{state}'; end $$");
    client.batch_execute(&raise).await.unwrap_err().into()
}

/// Topics of a test's own, by the names it calls them.
pub struct Topics {
    prefix: String,
    pub producer: BaseProducer,
    names: Vec<&'static str>,
}

impl Topics {
    pub async fn new(topics: &[(&'static str, i32)]) -> Topics {
        let prefix = format!("test-consumer-{}-", Uuid::new_v4());
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        for (name, partitions) in topics {
            let name = format!("{prefix}{name}");
            let new = NewTopic::new(&name, *partitions, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        let names = topics.iter().map(|(name, _)| *name).collect();
        Topics { prefix, producer: config.create().unwrap(), names }
    }

    pub fn full_name(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    pub fn produce<B: AsRef<[u8]>>(&self, topic: &str, partition: i32, bodies: &[B]) {
        let records: Vec<(&str, &[u8])> = bodies.iter().map(|body| ("key", body.as_ref())).collect();
        self.produce_keyed(topic, partition, &records);
    }

    /// Records by key and body.
    pub fn produce_keyed<B: AsRef<[u8]>>(&self, topic: &str, partition: i32, records: &[(&str, B)]) {
        let topic = self.full_name(topic);
        for (key, body) in records {
            let record = BaseRecord::to(&topic).partition(partition).key(*key).payload(body.as_ref());
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }

    fn group(&self) -> String {
        format!("{}group", self.prefix)
    }

    /// A client that takes the place of the member with this name, and has it until it is dropped.
    pub fn usurper(&self, name: &str) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers())
            .set("group.id", self.group())
            .set("group.instance.id", name);
        config.set("session.timeout.ms", "6000").set("partition.assignment.strategy", "range");
        config.set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().unwrap();
        let topics: Vec<String> = self.names.iter().map(|name| self.full_name(name)).collect();
        consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let began = std::time::Instant::now();
        while consumer.assignment().unwrap().count() == 0 {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it got no partition");
            let _record = consumer.poll(Duration::from_millis(50));
        }
        consumer
    }

    /// A member of this test's group.
    pub fn member(&self, reader: &Reader, limits: Limits) -> Member {
        self.member_named(None, reader, limits)
    }

    /// A member with this name, which its group keeps for it while it is away.
    pub fn member_named(&self, name: Option<&str>, reader: &Reader, limits: Limits) -> Member {
        let subscription = Subscription {
            brokers: Brokers::at(brokers()),
            group_id: self.group(),
            instance_id: name.map(str::to_owned),
            topics: self.names.iter().map(|name| self.full_name(name)).collect(),
        };
        let registry = prometheus::Registry::new();
        let metrics = ConsumerMetrics::register(&registry).unwrap();
        let stop = CancellationToken::new();
        let running = consumer::run_within(limits, subscription, reader.clone(), metrics, stop.clone());
        Member { stop, running: tokio::spawn(running), registry }
    }

    /// How far the group has come in a partition; none: nowhere.
    pub fn committed(&self, topic: &str, partition: i32) -> Option<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers()).set("group.id", self.group());
        let consumer: BaseConsumer = config.create().unwrap();
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&self.full_name(topic), partition);
        let found = consumer.committed_offsets(wanted, WAIT_TIMEOUT).unwrap();
        match found.elements()[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }
}

/// A running loop.
pub struct Member {
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    /// Its metrics.
    pub registry: prometheus::Registry,
}

impl Member {
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

pub fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}
