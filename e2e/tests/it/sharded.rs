//! A stack with two shards of payments and of balance: users of both are served, one shard's absence is its own users', and buckets move
//! while they pay.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use coroctl::databases;
use coroctl::topics::{self, SAGA_TOPICS};
use e2e::steady_load::{AMOUNT, Paid, SteadyLoad};
use futures_util::future::join_all;
use jiff::Timestamp;
use saga::shards::bucket::Bucket;
use saga::shards::list;
use serde_json::Value;
use stack::environment;
use stack::layout::Layout;
use tokio::process::Command;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, binary};

/// The room that a move asks for.
pub const DISKS: [&str; 4] = ["--source-bytes-free", "1000000000", "--target-bytes-free", "1000000000"];
const DEPOSIT: i64 = 1_000_000;
/// More than a move takes whose fences are lifted again and again, as on a machine that does other things too.
pub const MOVE_TIMEOUT: Duration = Duration::from_secs(900);

/// A service with shards: the variables with its lists, and the name of its sources in the relay's routes file.
#[derive(Clone, Copy)]
pub struct Service {
    shards: &'static str,
    admin: &'static str,
    source: &'static str,
}

pub const PAYMENTS: Service =
    Service { shards: "PAYMENTS_SHARDS", admin: "PAYMENTS_SHARDS_ADMIN", source: "payments" };
pub const BALANCE: Service =
    Service { shards: "BALANCE_SHARDS", admin: "BALANCE_SHARDS_ADMIN", source: "balance" };

/// As it is now: a stack may get shards while a test runs.
fn variable(name: &str) -> String {
    environment::variables(&Layout::from_env().unwrap()).unwrap()[name].clone()
}

impl Service {
    /// `coroctl shard COMMAND` on its shards.
    pub fn shard_command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("coroctl"));
        command.env("SHARDS", variable(self.shards)).env("SHARDS_ADMIN", variable(self.admin));
        command.arg("shard").args(arguments).kill_on_drop(true);
        command
    }

    async fn shard(self, arguments: &[&str]) -> Output {
        self.shard_command(arguments).output().await.unwrap()
    }

    /// The arguments of a mover besides buckets and shards.
    pub fn mover(self) -> [&'static str; 4] {
        ["--operator", "e2e", "--relay-source", self.source]
    }

    /// The shard of each bucket.
    pub async fn owners(self) -> BTreeMap<i16, String> {
        let listed = self.shard(&["list", "--json"]).await;
        assert!(listed.status.success(), "{listed:?}");
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let mut owners = BTreeMap::new();
        for shard in listed["shards"].as_array().unwrap() {
            let name = shard["shard"].as_str().unwrap();
            for bucket in shard["owned"].as_array().unwrap() {
                owners.insert(i16::try_from(bucket.as_i64().unwrap()).unwrap(), name.to_owned());
            }
        }
        assert_eq!(owners.len(), 1024, "a bucket has no owner: {listed}");
        owners
    }

    pub async fn verifies(self) {
        let verified = self.shard(&["verify"]).await;
        assert!(verified.status.success(), "{verified:?}");
    }

    /// Waits until each payment of these users has completed.
    async fn all_have_completed(self, shard: &str, users: &[Uuid]) {
        let shards = list::parse(&variable(self.shards)).unwrap();
        let shard = shards.iter().find(|listed| listed.name == shard).unwrap();
        let client = databases::connect(&shard.url).await.unwrap();
        let open = "select count(*) from payments where user_id = any ($1) and status <> 'completed'";
        let poll = async {
            while client.query_one(open, &[&users]).await.unwrap().get::<_, i64>(0) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, poll).await.expect("a payment does not complete");
    }

    /// The number of rows that a user has in a table of each shard.
    async fn rows(self, table: &str, user: Uuid) -> BTreeMap<String, i64> {
        let mut rows = BTreeMap::new();
        for shard in list::parse(&variable(self.shards)).unwrap() {
            let client = databases::connect(&shard.url).await.unwrap();
            let count = format!("select count(*) from {table} where user_id = $1");
            rows.insert(shard.name, client.query_one(&count, &[&user]).await.unwrap().get(0));
        }
        rows
    }
}

/// So many users with money, whose payments and balance are on this shard.
pub async fn users_on(harness: &Harness, shard: &str, count: usize) -> Vec<Uuid> {
    let owners = [PAYMENTS.owners().await, BALANCE.owners().await];
    let is_there = |user: &Uuid| owners.iter().all(|owners| owners[&Bucket::of(*user).number()] == shard);
    let users: Vec<Uuid> =
        std::iter::repeat_with(Uuid::now_v7).take(100_000).filter(is_there).take(count).collect();
    assert_eq!(users.len(), count, "shard {shard} owns too few buckets");
    for deposit in join_all(users.iter().map(|user| harness.client.deposit(*user, DEPOSIT, "first"))).await {
        deposit.unwrap();
    }
    users
}

pub async fn until(what: &str, timeout: Duration, met: impl Fn() -> bool) {
    let poll = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(timeout, poll).await.unwrap_or_else(|_| panic!("it never came: {what}"));
}

/// Each payment ends once and takes its money once, and none of these users has paid for anything else.
pub async fn all_complete_once(harness: &Harness, users: &[Uuid], payments: &[Paid]) {
    harness.all_end_completed(payments.iter().map(Paid::ids)).await;
    for user in users {
        let count = payments.iter().filter(|paid| paid.user_id == *user).count();
        let left = DEPOSIT - AMOUNT * i64::try_from(count).unwrap();
        let balance = async {
            // The capture of the last payment may come after its end.
            while harness.client.balance(*user).await.unwrap() != (left, 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let settled = tokio::time::timeout(WAIT_TIMEOUT, balance).await;
        assert!(settled.is_ok(), "{user}: {:?}, not {left}", harness.client.balance(*user).await);
    }
    let mut charges: BTreeMap<String, usize> = BTreeMap::new();
    for charge in harness.client.gateway_ledger().await.unwrap() {
        if charge["kind"] != "charge" {
            continue;
        }
        *charges.entry(charge["reference"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    for paid in payments {
        assert_eq!(charges.get(&paid.payment_id.to_string()), Some(&1), "charges of {}", paid.payment_id);
    }
}

#[tokio::test]
#[ignore = "needs a stack with two shards: cargo stack test --only shards"]
async fn users_of_both_shards_pay_and_their_events_have_one_source() {
    let harness = Harness::shared().await;
    for (shard, other) in [("one", "two"), ("two", "one")] {
        let user = users_on(&harness, shard, 1).await[0];
        let began = Timestamp::now();
        let payment = harness.settle(user, "0812", 400).await;
        assert_eq!(payment["status"], "completed", "{payment}");
        for (service, table) in [(PAYMENTS, "payments"), (BALANCE, "ledger")] {
            let rows = service.rows(table, user).await;
            assert!(rows[shard] > 0 && rows[other] == 0, "{table} of a user of {shard}: {rows:?}");
        }
        let (kafka, id) =
            (harness.stack.kafka().unwrap(), payment["payment_id"].as_str().unwrap().to_owned());
        let events = tokio::task::spawn_blocking(move || topics::about(kafka, &SAGA_TOPICS, began, &id));
        let mut sources = BTreeMap::new();
        for event in events.await.unwrap().unwrap() {
            sources
                .entry(event.header("ce_source").to_owned())
                .or_insert_with(Vec::new)
                .push(event.event_type().to_owned());
        }
        let names: Vec<&str> = sources.keys().map(String::as_str).collect();
        assert_eq!(names, ["/coro/balance", "/coro/payments", "/coro/processor"], "{sources:?}");
        let completed = "payment.completed.v1".to_owned();
        assert!(sources["/coro/payments"].contains(&completed), "{sources:?}");
    }
}

/// Payments at even intervals by these users, through the edge.
pub fn load(harness: &Harness, users: &[Uuid], interval: Duration) -> std::sync::Arc<SteadyLoad> {
    let client = coroctl::client::Client::new(&harness.stack.through_edge()).unwrap();
    SteadyLoad::new(client, users.to_vec(), &harness.stack.demo_service_id, interval)
}

#[tokio::test]
#[ignore = "needs a stack with two shards: cargo stack test --only shards"]
async fn a_shard_that_is_away_is_missed_by_its_own_users_only() {
    let harness = Harness::alone().await;
    let (here, there) = (users_on(&harness, "one", 10).await, users_on(&harness, "two", 10).await);
    let interval = Duration::from_millis(100);
    let (served, missing) = (load(&harness, &here, interval), load(&harness, &there, interval));
    let accepted = async |load: &SteadyLoad, more: usize| {
        let count = load.accepted_count() + more;
        until("payments are accepted", WAIT_TIMEOUT, || load.accepted_count() >= count).await;
    };
    let disturb = async {
        accepted(&missing, 20).await;
        harness.cargo_stack("stop", "postgres-two").await;
        until("users of the shard are refused", WAIT_TIMEOUT, || missing.failed_count() >= 30).await;
        accepted(&served, 50).await;
        harness.cargo_stack("start", "postgres-two").await;
        accepted(&missing, 30).await;
        accepted(&served, 30).await;
        served.stop();
        missing.stop();
    };
    tokio::join!(served.run(), missing.run(), disturb);
    assert_eq!(served.failed(), [""; 0]);
    let others: Vec<String> = missing.failed().into_iter().filter(|why| !why.contains("503 ")).collect();
    assert_eq!(others, [""; 0]);
    all_complete_once(&harness, &here, &served.accepted()).await;
    for payment in missing.accepted() {
        let ended = harness.client.wait_for_end(payment.user_id, payment.payment_id, WAIT_TIMEOUT).await;
        assert_eq!(ended.unwrap()["status"], "completed");
    }
    // So does one whose request was answered 503, though it was carried out: the answer to its commit was lost.
    PAYMENTS.all_have_completed("two", &there).await;
    PAYMENTS.verifies().await;
    BALANCE.verifies().await;
}

#[tokio::test]
#[ignore = "needs a stack with two shards: cargo stack test --only shards"]
async fn buckets_move_while_their_users_pay() {
    let harness = Harness::alone().await;
    let users = users_on(&harness, "one", 20).await;
    let mut moved: Vec<i16> = users.iter().take(10).map(|user| Bucket::of(*user).number()).collect();
    moved.sort_unstable();
    moved.dedup();
    let buckets = moved.iter().map(i16::to_string).collect::<Vec<_>>().join(",");
    let load = load(&harness, &users, Duration::from_millis(40));
    let more = async |count: usize| {
        let count = load.accepted_count() + count;
        until("payments are accepted", WAIT_TIMEOUT, || load.accepted_count() >= count).await;
    };
    let disturb = async {
        more(50).await;
        for service in [PAYMENTS, BALANCE] {
            let begin = ["move", "--from", "one", "--to", "two", "--buckets", &buckets];
            let arguments = [&begin[..], &service.mover(), &DISKS].concat();
            let output = tokio::time::timeout(MOVE_TIMEOUT, service.shard(&arguments)).await;
            let output = output.expect("the move does not end");
            assert!(output.status.success(), "{output:?}");
            more(50).await;
        }
        load.stop();
    };
    tokio::join!(load.run(), disturb);
    assert_eq!(load.failed(), [""; 0]);
    all_complete_once(&harness, &users, &load.accepted()).await;
    for service in [PAYMENTS, BALANCE] {
        let owners = service.owners().await;
        assert!(moved.iter().all(|bucket| owners[bucket] == "two"), "{owners:?}");
        service.verifies().await;
    }
    let rows = PAYMENTS.rows("payments", users[0]).await;
    assert!(rows["one"] == 0 && rows["two"] > 0, "{rows:?}");
}
