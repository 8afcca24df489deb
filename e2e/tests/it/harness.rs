//! The stack under test, and the rule who may disturb it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brokers::Brokers;
use coroctl::audit;
use coroctl::client::{Client, order};
use coroctl::databases::Databases;
use coroctl::stack::Stack;
use futures_util::future::join_all;
use rdkafka::producer::FutureProducer;
use saga::search_index::{Body, Method, SearchIndex, Settings};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use uuid::Uuid;

use crate::captured;

/// Longer than a group needs to notice a killed member, and then some for two busy cores.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

/// The header of messages that a test produces to be parked.
pub const EXPLAINED: (&str, &str) = ("explained", "e2e");

/// A client that may be idle for longer than a server keeps its connections, and waits for no answer for ever.
pub fn http() -> reqwest::Client {
    saga::http_client::builder().timeout(WAIT_TIMEOUT).build().unwrap()
}

/// The answer to a `GET` of its own.
pub async fn get(url: impl reqwest::IntoUrl) -> reqwest::Result<reqwest::Response> {
    http().get(url).send().await
}

/// Produces as the administrator, to the partitions that the relay chooses.
pub fn producer() -> FutureProducer {
    Brokers::from_env("KAFKA_ADMIN_CONFIG")
        .unwrap()
        .config()
        .set("partitioner", "murmur2_random")
        .create()
        .unwrap()
}

static DISTURBANCE: RwLock<()> = RwLock::const_new(());

/// Keeps others from disturbing, or everybody else away.
#[allow(dead_code, reason = "held, never read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub struct Harness {
    pub stack: Stack,
    pub client: Client,
    _turn: Turn,
}

impl Harness {
    /// For tests that only use the stack.
    pub async fn shared() -> Self {
        Self::with(Turn::Shared(DISTURBANCE.read().await))
    }

    /// For tests that stop or kill parts of it. Their modules are listed in `stack/src/check/stacks.rs`, which runs them when no other
    /// program uses the stack.
    pub async fn alone() -> Self {
        let beside = std::env::var_os("STACK_TEST_BESIDE").is_some();
        assert!(!beside, "others use the stack: the module belongs to ALONE of stack/src/check/stacks.rs");
        Self::with(Turn::Alone(DISTURBANCE.write().await))
    }

    fn with(turn: Turn) -> Self {
        let stack = Stack::from_env().unwrap();
        let client = Client::new(&stack).unwrap();
        Self { stack, client, _turn: turn }
    }

    /// Pays and waits for the end.
    pub async fn settle(&self, user_id: Uuid, client_number: &str, amount: i64) -> Value {
        let payment_id = self.client.pay(user_id, client_number, amount).await.unwrap();
        self.client.wait_for_end(user_id, payment_id, WAIT_TIMEOUT).await.unwrap()
    }

    pub fn order(&self, amount: i64, key: &str) -> Value {
        order("081234567890", &self.stack.demo_service_id, amount, key)
    }

    /// `cargo stack VERB NAME`.
    pub async fn cargo_stack(&self, verb: &'static str, name: &str) {
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || {
            let status =
                Command::new(binary("stack")).args([verb, &name]).stdout(Stdio::null()).status().unwrap();
            assert!(status.success(), "stack {verb} {name}");
        })
        .await
        .unwrap();
    }

    /// Audits everything there is, and holds every record on Kafka against the documents. Every parked message must come
    /// from a test.
    pub async fn adds_up(&self) {
        let explained =
            self.explained_everywhere().await.into_iter().map(|(_, parked_id)| parked_id).collect();
        let options = audit::Options { explained, ..audit::Options::default() };
        let findings = audit::run_with(&self.stack, &options).await.unwrap();
        let broken: Vec<_> = findings.iter().filter(|finding| !finding.holds()).collect();
        assert!(broken.is_empty(), "{broken:#?}");
        captured::assert_valid(self).await;
    }

    /// Whoever has parked them (a database, or the search index) and the ids of the messages that tests produced to be parked,
    /// whenever that was: they say so in their headers.
    pub async fn explained_everywhere(&self) -> BTreeSet<(&'static str, String)> {
        let mut found = self.explained().await;
        if let Some(url) = &self.stack.search_url {
            let index = SearchIndex::new(url, &Settings::default().search_alias, WAIT_TIMEOUT).unwrap();
            let path = format!("/{}/_search?size=10000", index.parked_index());
            let (name, value) = EXPLAINED;
            let hits = index.send(Method::GET, &path, Body::None).await.unwrap()["hits"]["hits"].take();
            let of_tests = |hit: &&Value| hit["_source"]["headers"][name] == value;
            let ids =
                hits.as_array().unwrap().iter().filter(of_tests).map(|hit| hit["_id"].as_str().unwrap());
            found.extend(ids.map(|id| ("search", id.to_owned())));
        }
        found
    }

    /// Database and id of the messages that tests produced to be parked, whenever that was: they say so in their
    /// headers.
    pub async fn explained(&self) -> BTreeSet<(&'static str, String)> {
        let databases = Databases::connect(&self.stack).await.unwrap();
        let mut found = BTreeSet::new();
        for (name, client) in databases.named() {
            let query = "select parked_id from parked where headers ->> $1::text = $2::text";
            let rows = client.query(query, &[&EXPLAINED.0, &EXPLAINED.1]).await.unwrap();
            found.extend(rows.iter().map(|row| (name, row.get(0))));
        }
        found
    }

    /// Waits until each payment has ended as it should, and audits everything.
    pub async fn all_complete(&self, payments: impl IntoIterator<Item = (Uuid, Uuid)>) {
        self.all_end_completed(payments).await;
        self.adds_up().await;
    }

    /// Waits until each payment has ended as it should.
    pub async fn all_end_completed(&self, payments: impl IntoIterator<Item = (Uuid, Uuid)>) {
        let end = |(user, payment)| self.client.wait_for_end(user, payment, WAIT_TIMEOUT);
        for payment in join_all(payments.into_iter().map(end)).await {
            assert_eq!(payment.unwrap()["status"], "completed");
        }
    }

    /// Looks until the payment is as it should be.
    pub async fn until(&self, user_id: Uuid, payment_id: Uuid, met: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let payment = self.client.payment(user_id, payment_id).await.unwrap();
            if met(&payment) {
                return payment;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{payment}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the intent to charge is committed.
    pub async fn committed_charge(&self, payment_id: Uuid) {
        self.charge(payment_id, "true").await;
    }

    /// Waits until there is a charge of which this holds.
    pub async fn charge(&self, payment_id: Uuid, condition: &str) {
        let client = coroctl::databases::connect(&self.stack.processor_database_url).await.unwrap();
        let query = format!("select 1 from charges where payment_id = $1 and {condition}");
        let poll = async {
            while client.query_opt(&query, &[&payment_id]).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, poll).await.unwrap();
    }

    pub async fn payments_of(&self, user_id: Uuid) -> i64 {
        let client = coroctl::databases::connect(&self.stack.payments_database_url).await.unwrap();
        let query = "select count(*) from payments where user_id = $1";
        client.query_one(query, &[&user_id]).await.unwrap().get(0)
    }
}

/// One of ours, built beside this test program.
pub fn binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().and_then(|deps| deps.parent()).unwrap().join(name)
}
