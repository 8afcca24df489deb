//! A database, a gateway and a processor of a test's own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use processor_svc::charge::Charge;
use processor_svc::store::Store;
use processor_svc::work::Job;
use saga::postgres::Pool;
use saga::{CancellationToken, postgres};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

/// Longer than anything a test waits for takes, on a busy machine too.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Nobody listens there.
pub const NOWHERE: &str = "127.0.0.1:9";

pub fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need real servers (`cargo stack test`, or `. .stack/env` after `cargo stack up`)")
    })
}

/// A processor database, dropped at the end of a test that passed.
pub struct Database {
    admin_url: String,
    name: String,
    pub url: String,
    pub pool: Pool,
}

impl Database {
    pub async fn new() -> Database {
        let admin_url = env("POSTGRES_ADMIN_URL");
        let admin = sql::connect(&admin_url).await.unwrap();
        // Roles are the cluster's; a stack has made them, with passwords that are not ours to change.
        if admin
            .query_opt("select from pg_roles where rolname = 'processor_svc'", &[])
            .await
            .unwrap()
            .is_none()
        {
            sql::bootstrap(&admin_url, &sql::Passwords::from_fn(|role| format!("it-{role}"))).await.unwrap();
        }
        let name = format!("processor_test_{}", Uuid::new_v4().simple());
        sql::create_database(&admin_url, sql::Database::Processor, &name).await.unwrap();
        Database::named(admin_url, name).await
    }

    async fn named(admin_url: String, name: String) -> Database {
        // Sessions of the superuser in this database act as the service, with the service's rights.
        let admin = sql::connect(&admin_url).await.unwrap();
        let user =
            admin.query_one("select quote_ident(current_user)", &[]).await.unwrap().get::<_, String>(0);
        let act = format!("alter role {user} in database {name} set role to 'processor_svc'");
        admin.batch_execute(&act).await.unwrap();
        let (server, _) = admin_url.rsplit_once('/').unwrap();
        let url = format!("{server}/{name}");
        let pool = postgres::pool(&url, 4, "test").unwrap();
        Database { admin_url, name, url, pool }
    }

    /// Another database with the same rows, as a restore makes one.
    pub async fn copy(&self) -> Database {
        let (original, name) = (&self.name, format!("{}_copy", self.name));
        // A template must have no sessions. Those of the pool end soon; it connects again.
        self.pool.retain(|_, _| false);
        let admin = sql::connect(&self.admin_url).await.unwrap();
        let copy = format!("create database {name} owner coro_owner template {original}");
        while let Err(error) = admin.batch_execute(&copy).await {
            assert_eq!(error.code(), Some(&SqlState::OBJECT_IN_USE), "{error}");
        }
        Database::named(self.admin_url.clone(), name).await
    }

    pub fn store(&self, lease: Duration) -> Store {
        Store::new(self.pool.clone(), lease)
    }

    /// The result of `work`, and how many of its commits waited for all that was visible.
    pub fn barriers<'a, T: 'a>(
        &'a self,
        work: impl Future<Output = T> + 'a,
    ) -> impl Future<Output = (T, i64)> + 'a {
        let counted = sql::harness::barriers(&self.admin_url, &self.name, work);
        async { counted.await.unwrap() }
    }

    pub async fn query(&self, sql: &str) -> Vec<Row> {
        self.pool.get().await.unwrap().query(sql, &[]).await.unwrap()
    }

    /// The first column of the first row.
    pub async fn number(&self, sql: &str) -> i64 {
        self.query(sql).await[0].get(0)
    }

    /// Waits until a query answers this number.
    pub async fn until(&self, sql: &str, expected: i64) {
        let mut last = None;
        let met = async {
            loop {
                let number = self.number(sql).await;
                if number == expected {
                    break;
                }
                last = Some(number);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(WAIT_TIMEOUT, met).await.is_err() {
            let rows = self.query("select payment_id::text || ' ' || status || ' ' || attempt || ' ' || coalesce(reason, '') from charges where status not in ('succeeded','declined') limit 20").await;
            let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            panic!("{sql}\n is {last:?} and not {expected} after {WAIT_TIMEOUT:?}; unended: {rows:#?}");
        }
    }

    /// A session with the rights of the tables' owner.
    pub async fn owner(&self) -> tokio_postgres::Client {
        let client = sql::connect(&self.url).await.unwrap();
        client.batch_execute("reset role; set role none").await.unwrap();
        client
    }

    pub async fn end(self) {
        self.pool.close();
        sql::drop_database(&self.admin_url, &self.name).await.unwrap();
    }
}

/// The token of the operators of a test's gateway.
pub const ADMIN_TOKEN: &str = "the-token-of-a-test";

/// A socket that has its port, where nobody listens: nobody else gets that port while it lives, except to listen there.
pub fn bound() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}

fn ledger() -> PathBuf {
    std::env::temp_dir().join(format!("gateway-{}.ndjson", Uuid::new_v4()))
}

/// An in-process gateway on a port and ledger of its own.
pub struct Gateway {
    pub address: SocketAddr,
    ledger: PathBuf,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Gateway {
    pub async fn new() -> Gateway {
        Gateway::with(&[]).await
    }

    pub async fn with(flags: &[&str]) -> Gateway {
        Gateway::set_up(TcpListener::bind("127.0.0.1:0").await.unwrap(), ledger(), flags)
    }

    /// On the port of a socket that did not listen until now.
    pub fn listening(socket: TcpSocket) -> Gateway {
        Gateway::set_up(socket.listen(1_024).unwrap(), ledger(), &[])
    }

    fn set_up(listener: TcpListener, ledger: PathBuf, flags: &[&str]) -> Gateway {
        let path = ledger.to_str().unwrap();
        let fixed = ["gateway-sim", "--ledger-path", path, "--admin-token", ADMIN_TOKEN];
        let hang = if flags.contains(&"--hang-ms") { vec![] } else { vec!["--hang-ms", "3000"] };
        let args = fixed.into_iter().chain(hang).chain(flags.iter().copied());
        let config = gateway_sim::Config::parse_from(args);
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(gateway_sim::run(config, listener, shutdown.clone()));
        Gateway { address, ledger, shutdown, served }
    }

    /// References and amounts of all charges that stand, after those that are still to come have come.
    pub async fn ledger(&self) -> Vec<(String, i64)> {
        let undecided = async || {
            let reply = client().get(format!("http://{}/health", self.address)).send().await.unwrap();
            reply.json::<serde_json::Value>().await.unwrap()["undecided"] != 0
        };
        while undecided().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let reply = client().get(format!("http://{}/ledger", self.address)).send().await.unwrap();
        let mut standing = std::collections::BTreeMap::new();
        for line in reply.text().await.unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let charge = (line["reference"].as_str().unwrap().to_owned(), line["amount"].as_i64().unwrap());
            let provider_reference = line["provider_reference"].as_str().unwrap().to_owned();
            match line["kind"].as_str() {
                Some("charge") => drop(standing.insert(provider_reference, charge)),
                Some("void") => assert_eq!(standing.remove(&provider_reference), Some(charge)),
                kind => panic!("{kind:?}"),
            }
        }
        let mut all: Vec<_> = standing.into_values().collect();
        all.sort();
        all
    }

    /// Charges as a processor would that died before it wrote down the outcome.
    pub async fn charge(&self, charge: &Charge) {
        let url = format!("http://{}", self.address);
        let client = processor_svc::gateway::Gateway::new(&url, WAIT_TIMEOUT, WAIT_TIMEOUT, 1, true).unwrap();
        client.charge(charge).await;
    }

    pub async fn end(self) {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
        std::fs::remove_file(self.ledger).unwrap();
    }
}

pub fn client() -> reqwest::Client {
    saga::http_client::builder().timeout(Duration::from_secs(30)).build().unwrap()
}

/// An in-process processor with short times.
pub struct Processor {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    shutdown: CancellationToken,
    ran: JoinHandle<anyhow::Result<()>>,
}

/// Flags that make a processor of tests: everything that waits waits briefly.
pub fn flags(database: &str, gateway: &str, amqp: &str, redis: &str) -> Vec<String> {
    [
        format!("--database-url={database}"),
        format!("--gateway-url=http://{gateway}"),
        format!("--amqp-url={amqp}"),
        format!("--redis-url={redis}"),
        // Only the tests of cancels have a Kafka, and name it after this.
        format!("--kafka-brokers={NOWHERE}"),
    ]
    .into_iter()
    .chain(
        [
            "call-ms=400",
            // However busy the machine is, calls begin before their leases are too short for them. Scans are rarer by as much.
            "lease-grace-ms=3000",
            "visibility-ms=300",
            "inquiry-ms=50",
            "resend-ms=50",
            "resend-most-ms=100",
            "inquiry-most-ms=300",
            "breaker-pause-ms=300",
            // The scripted gateway of most tests does little but fail.
            "breaker-faults=1000000",
        ]
        .map(|flag| format!("--{flag}")),
    )
    .collect()
}

/// Flags with others in place of those of the same name.
pub fn instead(mut flags: Vec<String>, others: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    flags.retain(|flag| !others.iter().any(|other| name(other) == name(flag)));
    flags.extend(others.iter().map(|flag| (*flag).to_owned()));
    flags
}

/// The same without broker and Redis: only rows make it work.
pub fn rows_alone(database: &str, gateway: SocketAddr) -> Vec<String> {
    let (amqp, redis) = (format!("amqp://{NOWHERE}/%2f"), format!("redis://{NOWHERE}"));
    flags(database, &gateway.to_string(), &amqp, &redis)
}

impl Processor {
    pub async fn new(database: &Database, gateway: SocketAddr) -> Processor {
        Processor::with(rows_alone(&database.url, gateway)).await
    }

    pub async fn with(flags: Vec<String>) -> Processor {
        let fixed =
            ["processor-svc", "--listen-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--drain-ms=0"];
        let args = fixed.into_iter().map(str::to_owned).chain(flags);
        let config = processor_svc::Config::parse_from(args);
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (public_address, admin_address) = (public.local_addr().unwrap(), admin.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let ran = tokio::spawn(processor_svc::run(config, public, admin, shutdown.clone()));
        Processor { public: public_address, admin: admin_address, shutdown, ran }
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let reply = client().get(format!("http://{}{path}", self.admin)).send().await.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// The value of a metric, 0 if it is not there yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until it is ready.
    pub async fn until_ready(&self) {
        let ready = async {
            while self.get("/ready").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, ready).await.expect("it becomes ready");
    }

    /// The alarms that an operator would have to look at.
    pub async fn alarms(&self) -> Vec<String> {
        let (_, text) = self.get("/metrics").await;
        let alarms = text.lines().filter(|line| line.starts_with("processor_alarms_total{"));
        let alarms = alarms.filter(|line| !line.ends_with(" 0"));
        alarms.map(str::to_owned).collect()
    }

    /// Waits until a metric is as it should be.
    pub async fn until(&self, name: &str, met: impl Fn(f64) -> bool) {
        let waited = async {
            while !met(self.metric(name).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(WAIT_TIMEOUT, waited).await.is_err() {
            panic!("{name} is {} after {WAIT_TIMEOUT:?}", self.metric(name).await);
        }
    }

    /// Asks it to stop, and does not wait for its calls.
    pub fn leave(self) {
        self.shutdown.cancel();
    }

    /// Asks it to stop, and waits until it has.
    pub async fn end(self) {
        self.shutdown.cancel();
        self.ran.await.unwrap().unwrap();
    }
}

/// A processor as a process of its own, to be killed, or to end where `failpoints` say.
pub fn process(flags: &[String], failpoints: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_processor-svc"));
    if !flags.iter().any(|flag| flag.starts_with("--listen-addr")) {
        command.arg("--listen-addr=127.0.0.1:0");
    }
    command.arg("--admin-addr=127.0.0.1:0").args(flags);
    command.env("RUST_LOG", "error").env("FAILPOINTS", failpoints).stdin(Stdio::null()).spawn().unwrap()
}

pub fn job(client_number: &str) -> Job {
    let charge = Charge {
        payment_id: Uuid::now_v7(),
        user_id: Uuid::now_v7(),
        client_number: client_number.to_owned(),
        service_id: "power".to_owned(),
        amount: 15_000,
        traceparent: None,
    };
    Job { charge, expires_at: None }
}

pub fn jobs(count: usize, client_number: &str) -> Vec<Job> {
    (0..count).map(|_| job(client_number)).collect()
}
