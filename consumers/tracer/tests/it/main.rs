//! The tracer on a real Kafka, with a collector that says what it was sent. Topics and group are each test's own.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use saga::CancellationToken;
use saga::contract::EventType;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracer::config::Config;
use uuid::Uuid;
use warp::Filter;
use warp::http::StatusCode;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The user of every golden event.
const USER: &str = "0198c0de-0000-7000-8000-000000000001";
/// The whole life of a payment that is completed.
const COMPLETED: [EventType; 6] = [
    EventType::PaymentInitiated,
    EventType::BalanceHeld,
    EventType::PaymentAuthorized,
    EventType::ResultSucceeded,
    EventType::BalanceCaptured,
    EventType::PaymentCompleted,
];

/// A collector that answers with each status in turn, the last one for ever, and keeps what it accepted.
struct Collector {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(StatusCode, Value)>>>,
}

impl Collector {
    async fn answering(statuses: &'static [StatusCode]) -> Self {
        let asked: Arc<Mutex<Vec<(StatusCode, Value)>>> = Arc::default();
        let kept = asked.clone();
        let route = warp::path!("v1" / "traces").and(warp::body::json()).map(move |body: Value| {
            let mut asked = kept.lock().unwrap();
            let status = statuses[asked.len().min(statuses.len() - 1)];
            asked.push((status, body));
            warp::reply::with_status("{}", status)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(warp::serve(route).incoming(listener).run());
        Self { address, asked }
    }

    fn answers(&self) -> Vec<StatusCode> {
        self.asked.lock().unwrap().iter().map(|(status, _)| *status).collect()
    }

    /// The names of the spans that it accepted, by the service that they are of.
    fn spans(&self) -> BTreeMap<String, BTreeSet<String>> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut spans: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (_, body) in self.asked.lock().unwrap().iter().filter(|(status, _)| status.is_success()) {
            for resource in body["resourceSpans"].as_array().unwrap() {
                let service = text(&resource["resource"]["attributes"][0]["value"]["stringValue"]);
                let of_service = resource["scopeSpans"][0]["spans"].as_array().unwrap();
                spans.entry(service).or_default().extend(of_service.iter().map(|span| text(&span["name"])));
            }
        }
        spans
    }
}

struct Running {
    prefix: String,
    producer: FutureProducer,
    admin_url: String,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(collector: SocketAddr, settings: &[&str]) -> Self {
        let prefix = format!("it-{}-", Uuid::new_v4().simple());
        let kafka =
            Brokers::from_env("KAFKA_ADMIN_CONFIG").expect("run `cargo stack test`, or `. .stack/env`");
        let client = kafka.config();
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let names =
            ["PaymentTopic", "BalanceTopic", "PaymentResultTopic"].map(|name| format!("{prefix}{name}"));
        let topics: Vec<NewTopic<'_>> =
            names.iter().map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1))).collect();
        for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        let (group, file) = (format!("{prefix}tracer"), std::env::var("KAFKA_ADMIN_CONFIG").unwrap());
        let endpoint = format!("http://{collector}");
        let named = ["tracer", "--endpoint", &endpoint, "--group-id", &group, "--topic-prefix", &prefix];
        let config = Config::parse_from(
            named.into_iter().chain(["--kafka-config", &file]).chain(settings.iter().copied()),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn(tracer::run(config, listener, stop.clone()));
        Self { prefix, producer: client.create().unwrap(), admin_url, stop, task }
    }

    /// Emits golden events, committed one second apart from now on.
    async fn emit(&self, events: &[EventType]) {
        self.emit_since(0, events).await;
    }

    /// The same, committed so many seconds later than now.
    async fn emit_since(&self, seconds: i64, events: &[EventType]) {
        for (index, event) in (0_i64..).zip(events) {
            let path = format!("{}/../../saga/golden/{}.json", env!("CARGO_MANIFEST_DIR"), event.as_str());
            let (body, topic) = (std::fs::read(path).unwrap(), format!("{}{}", self.prefix, event.topic()));
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds + index);
            let at = at.to_string();
            let header = |key, value| Header { key, value: Some(value) };
            let headers =
                OwnedHeaders::new().insert(header("ce_type", event.as_str())).insert(header("ce_time", &at));
            let record = FutureRecord::to(&topic).key(USER).payload(&body).headers(headers);
            self.producer.send(record, WAIT_TIMEOUT).await.unwrap();
        }
    }

    async fn metric(&self, series: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.admin_url)).await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_payment_that_has_ended_is_a_trace_through_every_service() {
    let collector = Collector::answering(&[StatusCode::OK]).await;
    let running = Running::start(collector.address, &[]).await;
    running.emit(&COMPLETED).await;
    until("a trace", async || !collector.spans().is_empty()).await;
    let spans = collector.spans();
    let counts: BTreeMap<&str, usize> =
        spans.iter().map(|(name, spans)| (name.as_str(), spans.len())).collect();
    let expected = [("balance-svc", 2), ("cdc-relay", 5), ("payments-svc", 4), ("processor-svc", 2)];
    assert_eq!(counts, BTreeMap::from(expected), "{spans:#?}");
    assert!(
        spans["payments-svc"].contains("payment") && spans["processor-svc"].contains("charge at the gateway")
    );
    running.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_away_gets_the_traces_later() {
    let statuses = &[StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::OK];
    let collector = Collector::answering(statuses).await;
    let running = Running::start(collector.address, &[]).await;
    running.emit(&COMPLETED).await;
    until("a trace", async || !collector.spans().is_empty()).await;
    assert_eq!(collector.answers(), statuses);
    // The collector has the trace before the tracer has its answer.
    let sent = "tracer_traces_total{outcome=\"sent\"}";
    until("it is counted", async || running.metric(sent).await == 1.0).await;
    until("nothing waits", async || running.metric("tracer_events_pending").await == 0.0).await;
    running.stop().await;
}

#[tokio::test]
async fn what_the_collector_refuses_is_dropped_and_counted() {
    let collector = Collector::answering(&[StatusCode::BAD_REQUEST]).await;
    let running = Running::start(collector.address, &[]).await;
    running.emit(&COMPLETED).await;
    let refused = "tracer_traces_total{outcome=\"refused\"}";
    until("a refusal", async || running.metric(refused).await > 0.0).await;
    assert_eq!(collector.answers().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_end_in_the_middle_sends_what_is_there() {
    let collector = Collector::answering(&[StatusCode::OK]).await;
    let running = Running::start(collector.address, &[]).await;
    running.emit(&COMPLETED[..2]).await;
    until("two events", async || running.metric("tracer_events_pending").await >= 2.0).await;
    assert_eq!(collector.answers().len(), 0, "it has not ended");
    running.stop().await;
    let sent = collector.spans();
    assert!(sent["cdc-relay"].contains("payment.initiated.v1 to balance-svc"), "{sent:#?}");
}

#[tokio::test]
async fn what_is_sampled_out_or_old_is_not_traced() {
    let collector = Collector::answering(&[StatusCode::OK]).await;
    for (settings, since) in [(["--sampler", "0"], 0), (["--age-max-seconds", "60"], -100)] {
        let running = Running::start(collector.address, &settings).await;
        running.emit_since(since, &COMPLETED).await;
        let ignored = "consumer_records_total{outcome=\"ignored\"}";
        until("six events", async || running.metric(ignored).await >= 6.0).await;
        running.stop().await;
        assert_eq!(collector.answers().len(), 0, "{settings:?}");
    }
}
