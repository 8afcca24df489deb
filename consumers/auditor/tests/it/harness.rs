//! Databases and topics of one test, payments that walk through their whole life, and an auditor in this process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use auditor::audit::Setup;
use auditor::checks::Check;
use auditor::config::{Config, Databases};
use auditor::metrics::{KINDS, Metrics};
use auditor::store::Store;
use clap::Parser;
use jiff::{Timestamp, ToSpan};
use saga::CancellationToken;
use saga::contract::{ChargeResult, LedgerEntry, Payment};
use sql::Database;
use strum::VariantArray;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::relay::{Fate, Relay};
use crate::second::SecondShards;

const CONFIRM_INTERVAL: Duration = Duration::from_millis(300);
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(150);

/// The rows of a completed payment, and the events that led to them.
#[derive(Clone, Debug)]
pub struct Life {
    pub payment: Payment,
    pub hold: LedgerEntry,
    pub capture: LedgerEntry,
    pub charge: ChargeResult,
    /// Versions 1 and 2 of the payment.
    pub before: [Payment; 2],
}

pub struct Harness {
    databases: [sql::harness::Harness; 3],
    clients: [Client; 3],
    /// The second database of each service, where there is one.
    pub second: Option<SecondShards>,
    /// A slot reads the server's WAL of some seconds to be confirmed, so it is not done after each payment.
    confirmed_at: Instant,
    pub relay: Relay,
    prefix: String,
    /// Number and balance of each user's last movement.
    accounts: BTreeMap<Uuid, (i64, i64)>,
}

pub struct Running {
    pub metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Harness {
    pub async fn new() -> Self {
        let mut databases = Vec::new();
        let mut clients = Vec::new();
        for kind in [Database::Payments, Database::Balance, Database::Processor] {
            let database = sql::harness::Harness::new(kind).await.unwrap();
            let (server, _) = database.admin_url().rsplit_once('/').unwrap();
            clients.push(sql::connect(&format!("{server}/{}", database.name())).await.unwrap());
            databases.push(database);
        }
        let prefix = format!("test-{}-", Uuid::new_v4());
        Self {
            databases: databases.try_into().ok().unwrap(),
            clients: clients.try_into().ok().unwrap(),
            second: None,
            confirmed_at: Instant::now(),
            relay: Relay::new(&prefix).await,
            prefix,
            accounts: BTreeMap::new(),
        }
    }

    /// With two databases of each service.
    pub async fn sharded() -> Self {
        let mut harness = Self::new().await;
        harness.second = Some(SecondShards::new(&harness.databases, &harness.clients).await);
        harness
    }

    pub fn payments(&self) -> &Client {
        &self.clients[0]
    }

    pub fn balance(&self) -> &Client {
        &self.clients[1]
    }

    /// The shard of a user, by the index of the service.
    fn shard(&self, service: usize, user: Uuid) -> usize {
        self.second.as_ref().map_or(0, |second| second.shard(service, user))
    }

    /// The database of a user, by the index of the service.
    pub fn of(&self, service: usize, user: Uuid) -> &Client {
        match (&self.second, self.shard(service, user)) {
            (Some(second), 1) => &second.clients[service],
            _ => &self.clients[service],
        }
    }

    fn of_mut(&mut self, service: usize, user: Uuid) -> &mut Client {
        match (self.shard(service, user), &mut self.second) {
            (1, Some(second)) => &mut second.clients[service],
            _ => &mut self.clients[service],
        }
    }

    /// A user with money.
    pub async fn user(&mut self) -> Uuid {
        self.with_money(Uuid::now_v7()).await
    }

    pub async fn with_money(&mut self, user: Uuid) -> Uuid {
        let deposit = LedgerEntry {
            user_id: user,
            payment_id: Uuid::new_v4(),
            phase: 1,
            kind: "deposit".to_owned(),
            amount: 1_000_000,
            service_id: None,
            reason: None,
            traceparent: None,
            created_at: now(),
        };
        let account =
            "insert into accounts (user_id, available, held, last_entry_no) values ($1, 1000000, 0, 1)";
        let transaction = self.of_mut(1, user).transaction().await.unwrap();
        transaction.execute(account, &[&user]).await.unwrap();
        insert_entry(&transaction, &deposit, (1, 1_000_000, 0)).await;
        transaction.commit().await.unwrap();
        self.accounts.insert(user, (1, 1_000_000));
        self.relay.emit_from(self.shard(1, user), &deposit, Fate::Emitted);
        user
    }

    /// The rows of a completed payment, written, and not emitted.
    pub async fn complete(&mut self, user_id: Uuid, amount: i64) -> Life {
        let life = life(user_id, amount);
        let Life { payment: p, hold, capture, charge: c, .. } = &life;
        let (number, available) = self.accounts[&user_id];
        let transaction = self.of_mut(1, user_id).transaction().await.unwrap();
        insert_entry(&transaction, hold, (number + 1, available - amount, amount)).await;
        insert_entry(&transaction, capture, (number + 2, available - amount, 0)).await;
        let account = "update accounts set available = $2, last_entry_no = $3 where user_id = $1";
        transaction.execute(account, &[&user_id, &(available - amount), &(number + 2)]).await.unwrap();
        transaction.commit().await.unwrap();
        self.accounts.insert(user_id, (number + 2, available - amount));
        let statement = "
            insert into charges (payment_id, user_id, client_number, service_id, amount, status, version,
                                 provider_reference, lease_until, created_at, decided_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)";
        let provider = &c.provider_reference;
        self.of(2, user_id)
            .execute(
                statement,
                &[
                    &c.payment_id,
                    &c.user_id,
                    &c.client_number,
                    &c.service_id,
                    &c.amount,
                    &c.status,
                    &c.version,
                    provider,
                    &c.created_at,
                    &c.decided_at,
                ],
            )
            .await
            .unwrap();
        let statement = "
            insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount,
                                  status, event, version, initiated_at, expires_at, authorized_at, completed_at)
            values ($1, $2, $3, '\\x00', $4, $5, $6, $7, $7, $8, $9, $10, $11, $12)";
        self.of(0, user_id)
            .execute(
                statement,
                &[
                    &p.user_id,
                    &p.payment_id,
                    &p.payment_id.to_string(),
                    &p.client_number,
                    &p.service_id,
                    &p.amount,
                    &p.status,
                    &p.version,
                    &p.initiated_at,
                    &p.expires_at,
                    &p.authorized_at,
                    &p.completed_at,
                ],
            )
            .await
            .unwrap();
        life
    }

    /// A completed payment, emitted.
    pub async fn pay(&mut self, user_id: Uuid) -> Life {
        let life = self.complete(user_id, 100).await;
        self.emit(&life, Fate::Emitted);
        life
    }

    /// Emits all events of a payment; that of its second version has another fate.
    pub fn emit(&mut self, life: &Life, second: Fate) {
        let user = life.payment.user_id;
        let [payments, balance, processor] = [0, 1, 2].map(|service| self.shard(service, user));
        self.relay.emit_from(payments, &life.before[0], Fate::Emitted);
        self.relay.emit_from(balance, &life.hold, Fate::Emitted);
        self.relay.emit_from(payments, &life.before[1], second);
        self.relay.emit_from(processor, &life.charge, Fate::Emitted);
        self.relay.emit_from(balance, &life.capture, Fate::Emitted);
        self.relay.emit_from(payments, &life.payment, Fate::Emitted);
        self.relay.flush();
    }

    fn config(&self) -> Config {
        let brokers =
            std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
        let url = |service: usize| {
            let url = |database: &sql::harness::Harness| database.url("coro_checker").unwrap();
            let first = url(&self.databases[service]);
            match &self.second {
                Some(second) => format!("first={first} second={}", url(&second.databases[service])),
                None => first,
            }
        };
        let urls = [0, 1, 2].map(url);
        let [payments, balance, processor] = &urls;
        let arguments = [
            "auditor".to_owned(),
            "--admin-addr=127.0.0.1:0".to_owned(),
            format!("--payments-database-url={payments}"),
            format!("--balance-database-url={balance}"),
            format!("--processor-database-url={processor}"),
            format!("--kafka-brokers={brokers}"),
            format!("--group-id={}auditor", self.prefix),
            format!("--topic-prefix={}", self.prefix),
            "--queue=no-such-queue".to_owned(),
            "--pass-ms=200".to_owned(),
            "--recheck-ms=100".to_owned(),
            "--settle-ms=500".to_owned(),
        ];
        Config::parse_from(arguments)
    }

    /// Starts an auditor, and waits until it follows what is written from now on.
    pub async fn start(&self) -> Running {
        // Failed passes are logged.
        saga::telemetry::init(saga::telemetry::LogFormat::Text);
        let config = self.config();
        let databases: Databases = config.databases.clone();
        let (metrics, shutdown) = (Metrics::register().unwrap(), CancellationToken::new());
        let store = Store::new(&databases).unwrap();
        let setup = Setup { config, store, metrics: metrics.clone(), shutdown: shutdown.clone() };
        let task = tokio::spawn(async move { auditor::audit(setup).await.unwrap() });
        let running = Running { metrics, shutdown, task };
        running
            .until("it follows", |running| {
                let until = running.metrics.looked_until.get();
                until > 0.0 && until < Timestamp::now().as_millisecond() as f64 / 1_000.0
            })
            .await;
        running
    }

    /// Makes payments until the check has this many violations.
    pub async fn until_violated(&mut self, running: &Running, user: Uuid, check: Check, count: u64) {
        let began = Instant::now();
        while running.violations(check) < count {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{} is not violated: {running:?}", check.name());
            self.pay(user).await;
            self.confirm().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes payments until these many more are done with.
    pub async fn until_done(&mut self, running: &Running, user: Uuid) {
        let (began, from) = (Instant::now(), Timestamp::now());
        while running.metrics.looked_until.get() < from.as_millisecond() as f64 / 1_000.0 {
            assert!(began.elapsed() < WAIT_TIMEOUT, "the look does not go on: {running:?}");
            self.pay(user).await;
            self.confirm().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has the user's bucket of a service given up by its shard.
    pub async fn fence(&mut self, service: usize, user: Uuid) {
        let Self { second, clients, .. } = self;
        second.as_mut().unwrap().fence(clients, service, user).await;
    }

    /// Grants it to the other shard.
    pub async fn grant(&mut self, service: usize, user: Uuid) {
        let Self { second, clients, .. } = self;
        second.as_mut().unwrap().grant(clients, service, user).await;
    }

    /// Has the slots of shards say that all has been emitted.
    async fn confirm(&mut self) {
        if let Some(second) = &self.second
            && self.confirmed_at.elapsed() > CONFIRM_INTERVAL
        {
            second.confirm(&self.clients).await;
            self.confirmed_at = Instant::now();
        }
    }

    pub async fn finish(self) {
        if let Some(second) = self.second {
            second.finish(&self.clients).await;
        }
        drop(self.clients);
        for database in self.databases {
            database.finish().await.unwrap();
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = KINDS.map(|kind| (kind, self.examined(kind)));
        let (behind, pending) = (self.metrics.behind.get(), self.metrics.pending.get());
        let passes = ["examined", "empty", "failed"]
            .map(|result| self.metrics.passes.with_label_values(&[result]).get());
        write!(
            f,
            "violated {:?}, examined {kinds:?}, passes {passes:?}, {behind} behind, {pending} pending",
            self.all()
        )
    }
}

impl Running {
    pub fn violations(&self, check: Check) -> u64 {
        self.metrics.violations.with_label_values(&[check.name()]).get()
    }

    pub fn passes(&self) -> u64 {
        ["examined", "empty"]
            .map(|result| self.metrics.passes.with_label_values(&[result]).get())
            .iter()
            .sum()
    }

    pub fn examined(&self, kind: &str) -> u64 {
        self.metrics.examined.with_label_values(&[kind]).get()
    }

    /// Every check that is violated.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        let all = Check::VARIANTS.iter().map(|check| (check.name(), self.violations(*check)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{what}: not within {WAIT_TIMEOUT:?}; {self:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

/// An entry of the ledger. An account changes in the same transaction: an auditor sees both, or neither.
async fn insert_entry(
    transaction: &Transaction<'_>,
    entry: &LedgerEntry,
    (number, available, held): (i64, i64, i64),
) {
    let statement = "
        insert into ledger (user_id, payment_id, phase, kind, amount, service_id, reason, created_at, entry_no,
                            available_after, held_after)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let LedgerEntry { user_id, payment_id, phase, kind, amount, service_id, reason, created_at, .. } = entry;
    transaction
        .execute(
            statement,
            &[
                user_id, payment_id, phase, kind, amount, service_id, reason, created_at, &number,
                &available, &held,
            ],
        )
        .await
        .unwrap();
}

/// Microseconds, as Postgres keeps them.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap()
}

fn life(user_id: Uuid, amount: i64) -> Life {
    let (payment_id, at) = (Uuid::now_v7(), now());
    let payment = Payment {
        user_id,
        payment_id,
        client_number: "0812".to_owned(),
        service_id: "electricity".to_owned(),
        amount,
        status: "completed".to_owned(),
        event: "completed".to_owned(),
        reason: None,
        version: 3,
        traceparent: None,
        initiated_at: at,
        expires_at: at + 15.minutes(),
        authorized_at: Some(at),
        completed_at: Some(at),
        rejected_at: None,
        failed_at: None,
        cancelled_at: None,
        cancel_requested_at: None,
    };
    let authorized = Payment {
        status: "authorized".to_owned(),
        event: "authorized".to_owned(),
        version: 2,
        completed_at: None,
        ..payment.clone()
    };
    let initiated = Payment {
        status: "initiated".to_owned(),
        event: "initiated".to_owned(),
        version: 1,
        authorized_at: None,
        ..authorized.clone()
    };
    let hold = LedgerEntry {
        user_id,
        payment_id,
        phase: 1,
        kind: "hold".to_owned(),
        amount,
        service_id: Some("electricity".to_owned()),
        reason: None,
        traceparent: None,
        created_at: at,
    };
    let capture = LedgerEntry { phase: 2, kind: "capture".to_owned(), ..hold.clone() };
    let charge = ChargeResult {
        payment_id,
        user_id,
        client_number: "0812".to_owned(),
        service_id: "electricity".to_owned(),
        amount,
        status: "succeeded".to_owned(),
        attempt: 1,
        reason: None,
        version: 2,
        provider_reference: Some("ch_1".to_owned()),
        traceparent: None,
        expires_at: None,
        created_at: at,
        decided_at: Some(at),
    };
    Life { payment, hold, capture, charge, before: [initiated, authorized] }
}
