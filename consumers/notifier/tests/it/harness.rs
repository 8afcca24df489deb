//! A notifier on a database, a topic and a group of its own.

use std::fmt::Display;
use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use notifier::config::Config;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::CancellationToken;
use saga::contract::{HEADER_TYPE, PAYMENT_TOPIC};
use saga::postgres::{self, Pool};
use serde_json::{Value, json};
use sql::Database;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::receiver::reserved;

pub const ADMIN_TOKEN: &str = "the-token-of-a-test";
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Harness {
    pub pool: Pool,
    database: sql::harness::Harness,
    prefix: String,
    producer: BaseProducer,
}

/// An instance of the notifier, in this process or in one of its own.
pub struct Instance {
    admin: String,
    client: reqwest::Client,
    process: Process,
}

enum Process {
    Own(Child),
    Here(CancellationToken, JoinHandle<anyhow::Result<()>>),
}

impl Harness {
    pub async fn new() -> Self {
        saga::http::install_provider();
        let database = sql::harness::Harness::new(Database::Notifier).await.unwrap();
        let pool = postgres::pool(&database.service_url().unwrap(), 4, "test").unwrap();
        let prefix = format!("test-{}-", Uuid::new_v4());
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let name = format!("{prefix}{PAYMENT_TOPIC}");
        let topic = NewTopic::new(&name, 4, TopicReplication::Fixed(1));
        admin.create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        Self { pool, database, prefix, producer: config.create().unwrap() }
    }

    fn flags(&self, admin: &str, extra: &[&str]) -> Vec<String> {
        let brokers =
            std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
        let own = [
            "notifier".to_owned(),
            format!("--admin-addr={admin}"),
            format!("--database-url={}", self.database.service_url().unwrap()),
            format!("--kafka-brokers={brokers}"),
            format!("--group-id={}", self.prefix),
            format!("--topic-prefix={}", self.prefix),
            format!("--admin-token={ADMIN_TOKEN}"),
            "--webhook-allow=127.0.0.1/32".to_owned(),
        ];
        own.into_iter().chain(extra.iter().map(|&flag| flag.to_owned())).collect()
    }

    /// An instance in this process.
    pub async fn notifier(&self, extra: &[&str]) -> Instance {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = format!("http://{}", socket.local_addr().unwrap());
        let config = Config::parse_from(self.flags("127.0.0.1:0", extra));
        let shutdown = CancellationToken::new();
        let ran = tokio::spawn(notifier::run(config, socket, shutdown.clone()));
        Instance { admin, client: client(), process: Process::Here(shutdown, ran) }
    }

    /// An instance in a process of its own, which can be killed.
    pub async fn process(&self, extra: &[&str]) -> Instance {
        self.process_with(extra, &[]).await
    }

    /// The same with these variables.
    pub async fn process_with(&self, extra: &[&str], variables: &[(&str, &str)]) -> Instance {
        let reserved = reserved();
        let address = reserved.local_addr().unwrap().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_notifier"));
        command.args(&self.flags(&address, extra)[1..]).envs(variables.iter().copied()).kill_on_drop(true);
        let process = Process::Own(command.spawn().unwrap());
        let instance = Instance { admin: format!("http://{address}"), client: client(), process };
        let ready = async || instance.client.get(format!("{}/ready", instance.admin)).send().await.is_ok();
        eventually("it is ready", async || ready().await.then_some(())).await;
        instance
    }

    /// What an instance says that does not start with these variables.
    pub async fn refused(&self, variables: &[(&str, &str)]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_notifier"));
        command.args(&self.flags("127.0.0.1:0", &[])[1..]).envs(variables.iter().copied()).kill_on_drop(true);
        let output = tokio::time::timeout(WAIT_TIMEOUT, command.output()).await.unwrap().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    }

    /// Publishes the end of a new payment of this user; returns its id.
    pub fn end_payment(&self, user: Uuid, event: &str) -> Uuid {
        let payment = Uuid::now_v7();
        self.publish(user, payment, event);
        payment
    }

    pub fn publish(&self, user: Uuid, payment: Uuid, event: &str) {
        let kind = format!("payment.{event}.v1");
        let path = format!("{}/../../saga/golden/{kind}.json", env!("CARGO_MANIFEST_DIR"));
        let body = std::fs::read_to_string(path).unwrap();
        let body = body.replace("0198c0de-0000-7000-8000-000000000001", &user.to_string());
        let body = body.replace("0198c0de-0000-7000-8000-000000000002", &payment.to_string());
        // After everything that the test has made.
        let body = body.replace("2026-01-02", "2099-01-02");
        let topic = format!("{}{PAYMENT_TOPIC}", self.prefix);
        let headers = OwnedHeaders::new().insert(Header { key: HEADER_TYPE, value: Some(&kind) });
        let key = user.to_string();
        let record = BaseRecord::to(&topic).key(&key).payload(&body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }

    pub async fn count(&self, condition: &str) -> i64 {
        let query = format!("select count(*) from notifications where {condition}");
        self.pool.get().await.unwrap().query_one(&query, &[]).await.unwrap().get(0)
    }

    pub async fn until(&self, condition: &str, expected: i64) {
        eventually(&format!("{condition}: {expected}"), async || {
            (self.count(condition).await == expected).then_some(())
        })
        .await;
    }

    pub async fn finish(self) {
        let parked = "select count(*) from parked";
        let parked: i64 = self.pool.get().await.unwrap().query_one(parked, &[]).await.unwrap().get(0);
        assert_eq!(parked, 0);
        self.pool.close();
        self.database.finish().await.unwrap();
    }
}

impl Instance {
    /// A call without the token: its status.
    pub async fn anonymous(&self, method: &str, path: &str, body: Value) -> u16 {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.admin));
        request.json(&body).send().await.unwrap().status().as_u16()
    }

    /// A call with the token: status and body.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = method.parse().unwrap();
        let request = self.client.request(method, format!("{}{path}", self.admin)).bearer_auth(ADMIN_TOKEN);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    /// Creates an endpoint; returns its secret.
    pub async fn endpoint(&self, channel: &str, url: impl Display) -> String {
        let (status, body) =
            self.call("PUT", &format!("/endpoints/{channel}"), json!({"url": url.to_string()})).await;
        assert_eq!(status, 201, "{body}");
        body["secret"].as_str().unwrap().to_owned()
    }

    pub async fn contact(&self, user: Uuid, email: &str) {
        eventually("the contact is taken", async || {
            let (status, body) =
                self.call("PUT", &format!("/contacts/{user}"), json!({"email": email})).await;
            // On a busy machine it may not have a connection in time.
            assert!(status == 204 || status == 503, "{status} {body}");
            (status == 204).then_some(())
        })
        .await;
    }

    /// The value of a metric, over all of its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.client.get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await;
        let text = text.unwrap();
        let of = |line: &str| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<f64>().ok();
        text.lines().filter_map(of).sum()
    }

    pub async fn kill(self) {
        let Process::Own(mut child) = self.process else { panic!("it runs in this process") };
        child.kill().await.unwrap();
    }

    /// Stops it without waiting for deliveries under way.
    pub fn abandon(self) {
        if let Process::Here(shutdown, _) = self.process {
            shutdown.cancel();
        }
    }

    pub async fn stop(self) {
        match self.process {
            Process::Own(mut child) => child.kill().await.unwrap(),
            Process::Here(shutdown, ran) => {
                shutdown.cancel();
                ran.await.unwrap().unwrap();
            }
        }
    }
}

/// Asks until there is something.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One that may be idle for longer than an instance keeps its connections.
fn client() -> reqwest::Client {
    saga::http_client::builder().build().unwrap()
}
