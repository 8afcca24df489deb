//! What an operator sees of services with several databases: the audit, `find`, `stuck`, `explain`, `parked`, `resolve list` and
//! `replay`.

use std::process::{Command, Output};
use std::time::Duration;

use coroctl::databases::ServiceDatabases;
use coroctl::owned_rows::Undecided;
use coroctl::snapshots::Snapshots;
use saga::shards::bucket::Bucket;
use serde_json::Value;
use sql::Database;
use sql::harness::Harness;
use tokio_postgres::Client;
use uuid::Uuid;

use super::adopted::change;
use super::{Pair, json, users};
use crate::fixture::superuser;

/// Two databases of each service. The first user is on `one` of payments and of the processor and on `west` of balance, the second
/// on `two` and on `east`.
struct Saga {
    payments: Pair,
    balance: Pair,
    processor: Pair,
    users: [Uuid; 2],
}

/// The rows of a completed payment, by its database.
const PAYMENT: &str = "
    insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, status, event,
                          version, initiated_at, expires_at, authorized_at, completed_at)
    values ($1, $2, 'key', '\\x00', '0812', 'electricity', 100, 'completed', 'completed', 3, now(), now() + interval '15 min', now(),
            now())";
const ACCOUNT: &str = "insert into accounts (user_id, available, held, last_entry_no) values ($1, 900, 0, 3)";
const ENTRIES: &str = "
    insert into ledger (user_id, payment_id, phase, kind, amount, service_id, entry_no, available_after, held_after)
    select $1::uuid, case kind when 'deposit' then $3::uuid else $2::uuid end, phase, kind, amount, 'electricity', no, available, held
      from (values (1::smallint, 'deposit', 1000::bigint, 1::bigint, 1000::bigint, 0::bigint), (1, 'hold', 100, 2, 900, 100),
                   (2, 'capture', 100, 3, 900, 0)) as l (phase, kind, amount, no, available, held)";
const CHARGE: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, status, version, provider_reference, lease_until,
                         decided_at)
    values ($2, $1, '0812', 'electricity', 100, 'succeeded', 2, 'ch_1', now(), now())";

impl Saga {
    async fn new() -> Self {
        let saga = Self {
            payments: Pair::new(Database::Payments).await,
            balance: Pair::new(Database::Balance).await,
            processor: Pair::new(Database::Processor).await,
            users: users(),
        };
        let [first, second] = saga.users.map(|user| Bucket::of(user).number());
        for (pair, moved) in [(&saga.payments, second), (&saga.balance, first), (&saga.processor, second)] {
            change(&pair.one, moved, 2, false, "other").await;
            change(&pair.two, moved, 3, true, "other").await;
        }
        saga
    }

    /// The databases that own a user: payments, balance, processor.
    fn of(&self, user: usize) -> [&Harness; 3] {
        match user {
            0 => [&self.payments.one, &self.balance.two, &self.processor.one],
            _ => [&self.payments.two, &self.balance.one, &self.processor.two],
        }
    }

    fn bucket(&self, user: usize) -> i16 {
        Bucket::of(self.users[user]).number()
    }

    /// A completed payment of a user.
    async fn complete(&self, user: usize) -> Uuid {
        let (user_id, payment_id) = (self.users[user], Uuid::now_v7());
        let [payments, balance, processor] = self.of(user);
        superuser(payments).await.execute(PAYMENT, &[&user_id, &payment_id]).await.unwrap();
        let ledger = superuser(balance).await;
        ledger.execute(ACCOUNT, &[&user_id]).await.unwrap();
        ledger.execute(ENTRIES, &[&user_id, &payment_id, &Uuid::new_v4()]).await.unwrap();
        superuser(processor).await.execute(CHARGE, &[&user_id, &payment_id]).await.unwrap();
        payment_id
    }

    fn command(&self) -> Command {
        let list = |pair: &Pair, names: [&str; 2]| {
            let url = |harness: &Harness| harness.url("coro_checker").unwrap();
            format!("{}={} {}={}", names[0], url(&pair.one), names[1], url(&pair.two))
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_coroctl"));
        command
            .env("PAYMENTS_DATABASE_URL", list(&self.payments, ["one", "two"]))
            .env("BALANCE_DATABASE_URL", list(&self.balance, ["east", "west"]))
            .env("PROCESSOR_DATABASE_URL", list(&self.processor, ["one", "two"]));
        command
    }

    /// `coroctl ARGUMENTS`, with the addresses of databases and of nothing else.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coroctl"));
        command.env_clear();
        for (name, value) in self.command().get_envs() {
            command.env(name, value.unwrap());
        }
        command.args(arguments).output().unwrap()
    }

    fn audit(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.run(&[&["audit", "--json", "--wait", "0"], arguments].concat());
        (output.status.code(), json(&output))
    }

    async fn finish(self) {
        for pair in [self.payments, self.balance, self.processor] {
            pair.finish().await;
        }
    }
}

fn check<'a>(audit: &'a Value, name: &str) -> &'a Value {
    let mut checks = audit["checks"].as_array().unwrap().iter();
    checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("{audit}"))
}

/// Name, violations and first offender of each check that is violated.
fn violated(audit: &Value) -> Vec<(&str, u64, &str)> {
    let checks = audit["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| check["violations"].as_u64() > Some(0))
        .map(|check| {
            let (name, first) = (check["name"].as_str().unwrap(), check["first"].as_str().unwrap());
            (name, check["violations"].as_u64().unwrap(), first)
        })
        .collect()
}

async fn act(harness: &Harness, statements: &str) {
    superuser(harness).await.batch_execute(statements).await.unwrap();
}

/// As a move leaves them that has not removed the rows at its source, nor at a target that it was rolled back from.
async fn leave_copies(saga: &Saga, payment_id: Uuid) {
    let user_id = saga.users[1];
    let source = superuser(&saga.payments.one).await;
    source.execute(PAYMENT, &[&user_id, &payment_id]).await.unwrap();
    source
        .batch_execute("update payments set status = 'authorized', event = 'authorized', version = 2, completed_at = null")
        .await
        .unwrap();
    superuser(&saga.balance.two).await.execute(ACCOUNT, &[&user_id]).await.unwrap();
    superuser(&saga.processor.one).await.execute(CHARGE, &[&user_id, &payment_id]).await.unwrap();
}

#[tokio::test]
async fn users_on_several_shards_are_looked_at_as_those_of_one_database() {
    let saga = Saga::new().await;
    let second = saga.complete(1).await;
    leave_copies(&saga, second).await;
    let first = saga.complete(0).await;

    let (code, audit) = saga.audit(&[]);
    assert_eq!((code, violated(&audit)), (Some(0), vec![]), "{audit}");
    assert_eq!(audit["notes"], serde_json::json!([]));
    for (name, examined) in
        [("S1", 2), ("S3", 2), ("M2", 2), ("M3", 2), ("M5", 2), ("M6", 6), ("T5", 10), ("O1", 3 * 1024)]
    {
        assert_eq!(check(&audit, name)["examined"], examined, "{name}: {audit}");
    }

    let found = json(&saga.run(&["find", "--json"]));
    let found: Vec<(&str, &str, &str)> = found["payments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|payment| {
            let text = |name: &str| payment[name].as_str().unwrap();
            (text("payment_id"), text("shard"), text("status"))
        })
        .collect();
    let (first_id, second_id) = (first.to_string(), second.to_string());
    assert_eq!(found, [(&*first_id, "one", "completed"), (&*second_id, "two", "completed")]);
    let page = json(&saga.run(&["find", "--json", "--limit", "1"]));
    let next = page["next"].as_str().unwrap();
    let page = saga.run(&["find", "--limit", "1", "--after", next]);
    let text = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(text.contains("SHARD") && text.contains(&second_id) && !text.contains(&first_id), "{text}");
    let one = json(&saga.run(&["find", "--json", "--user", &saga.users[1].to_string()]));
    assert_eq!((one["payments"].as_array().unwrap().len(), &one["payments"][0]["shard"]), (1, &"two".into()));
    let stuck = json(&saga.run(&["stuck", "--json", "--older-than", "0s"]));
    assert_eq!(stuck["payments"], serde_json::json!([]), "the copy is at its source only");
    saga.finish().await;
}

#[tokio::test]
async fn what_is_wrong_on_the_second_shard_is_found_and_says_so() {
    let saga = Saga::new().await;
    let (first, second) = (saga.complete(0).await, saga.complete(1).await);
    act(&saga.balance.two, "update accounts set available = 901").await;
    act(&saga.payments.two, "update payments set status = 'authorized', version = 2, completed_at = null")
        .await;
    let (code, audit) = saga.audit(&[]);
    assert_eq!(code, Some(1), "{audit}");
    let names: Vec<&str> = violated(&audit).iter().map(|(name, _, _)| *name).collect();
    assert_eq!(names, ["M1", "M3", "S1"], "{audit}");
    let first_of = |name: &str| check(&audit, name)["first"].as_str().unwrap().to_owned();
    assert!(first_of("M1").starts_with("shard west: deposits 1000"), "{}", first_of("M1"));
    assert!(first_of("M3").starts_with(&format!("shard west: user {}", saga.users[0])), "{}", first_of("M3"));
    let where_it_is = "(payments on shard two, balance on shard east, processor on shard two)";
    assert_eq!(first_of("S1"), format!("{second}: still authorized {where_it_is}"));

    let stuck = json(&saga.run(&["stuck", "--json", "--older-than", "0s"]));
    let [payment] = stuck["payments"].as_array().unwrap().as_slice() else { panic!("{stuck}") };
    assert_eq!((&payment["payment_id"], &payment["shard"]), (&second.to_string().into(), &"two".into()));
    assert_eq!(payment["service"], "payments-svc", "its capture is on another shard: {payment}");

    let mut explain = saga.command();
    let explained = explain.args(["explain", &first.to_string()]).output().unwrap();
    let life = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.status.success(), "{explained:?}");
    for row in ["payments (shard one)", "ledger (shard west)", "charges (shard one)", "It has ended"] {
        assert!(life.contains(row), "{row}: {life}");
    }

    let replay = ["replay", &second.to_string(), "--routes", "routes.toml", "--relay", "/bin/echo"];
    let refused = saga.run(&replay);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("on shard east of balance"), "{refused:?}");
    let emitted = saga.run(&[&replay[..], &["--relay-source", "balance-east"]].concat());
    let text = String::from_utf8_lossy(&emitted.stdout).into_owned();
    assert!(text.contains("--source balance-east --table ledger"), "{emitted:?}");
    saga.finish().await;
}

#[tokio::test]
async fn a_bucket_without_one_owner_is_named_and_its_users_are_left_out() {
    let saga = Saga::new().await;
    saga.complete(0).await;
    let second = saga.complete(1).await;
    let bucket = saga.bucket(1);
    let unowned = |what: &str| format!("payments: {what} {bucket}");

    change(&saga.payments.two, bucket, 4, false, "one").await;
    let (code, audit) = saga.audit(&["--live"]);
    let nobodys = unowned("no shard owns buckets");
    assert_eq!((code, violated(&audit)), (Some(1), vec![("O1", 1, &*nobodys)]), "{audit}");
    assert!(audit["notes"][0].as_str().unwrap().starts_with(&nobodys), "{audit}");
    assert_eq!(check(&audit, "S3")["examined"], 1);
    let found = json(&saga.run(&["find", "--json"]));
    assert!(found["left_out"].as_str().unwrap().contains(&nobodys), "{found}");
    assert_eq!(found["payments"].as_array().unwrap().len(), 1, "{found}");
    let replay = ["replay", &second.to_string(), "--routes", "routes.toml", "--relay", "/bin/echo"];
    let refused = saga.run(&replay);
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&nobodys), "{refused:?}");

    change(&saga.payments.two, bucket, 5, true, "one").await;
    change(&saga.payments.one, bucket, 5, true, "two").await;
    let (code, audit) = saga.audit(&["--live"]);
    let contested = unowned("two shards own at one epoch buckets");
    assert_eq!((code, violated(&audit)), (Some(1), vec![("O1", 1, &*contested)]), "{audit}");

    // The source was restored to a state before the move: it claims the bucket at an epoch that has passed.
    change(&saga.payments.two, bucket, 6, false, "one").await;
    change(&saga.payments.two, bucket, 7, true, "one").await;
    let (code, audit) = saga.audit(&["--live"]);
    assert_eq!((code, violated(&audit)), (Some(0), vec![]), "{audit}");
    assert_eq!(check(&audit, "S3")["examined"], 2);
    saga.finish().await;
}

async fn park(client: &Client, parked_id: &str, reason: &str) {
    let insert = "insert into parked (parked_id, source, headers, body, reason) values ($1, 'BalanceTopic', '{}', '\\x00', $2)";
    client.execute(insert, &[&parked_id, &reason]).await.unwrap();
}

#[tokio::test]
async fn parked_messages_and_proposals_are_listed_with_their_shards() {
    let saga = Saga::new().await;
    let (one, two) = (superuser(&saga.payments.one).await, superuser(&saga.payments.two).await);
    park(&one, "BalanceTopic/0/1", "first").await;
    park(&two, "BalanceTopic/0/1", "copy").await;
    park(&two, "BalanceTopic/0/2", "second").await;
    let list = |arguments: &[&str]| -> Vec<(String, String)> {
        let listed =
            json(&saga.run(&[&["parked", "list", "--json", "--database", "payments"], arguments].concat()));
        let text = |message: &Value, name: &str| message[name].as_str().unwrap().to_owned();
        let listed = listed["parked"].as_array().unwrap().clone();
        listed.iter().map(|message| (text(message, "shard"), text(message, "parked_id"))).collect()
    };
    let at = |shard: &str, id: &str| (shard.to_owned(), id.to_owned());
    let copies = [at("one", "BalanceTopic/0/1"), at("two", "BalanceTopic/0/1")];
    assert_eq!(list(&["--limit", "1"]), copies, "the next page begins behind the id");
    assert_eq!(list(&["--after", "BalanceTopic/0/1"]), [at("two", "BalanceTopic/0/2")]);
    assert_eq!(list(&[]).len(), 3);
    let shown = json(&saga.run(&["parked", "show", "payments", "BalanceTopic/0/1", "--json"]));
    assert_eq!((&shown["shard"], &shown["copies"][0]["shard"]), (&"one".into(), &"two".into()), "{shown}");
    assert_eq!(shown["copies"][0]["reason"], "copy", "{shown}");
    let none = saga.run(&["parked", "show", "balance", "BalanceTopic/0/1"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("nothing with the id"), "{none:?}");
    let (_, audit) = saga.audit(&["--live"]);
    assert!(check(&audit, "T6 parked")["skipped"].is_string(), "without Kafka: {audit}");

    let propose = "
        insert into resolutions (resolution_id, payment_id, user_id, client_number, service_id, amount, evidence, operator, reason,
                                 proposed_at)
        values ($1, $2, $3, '0812', 'electricity', 100, 'never_made', 'ada', 'a test', now() + $4 * interval '1 second')";
    let processors = [&saga.processor.one, &saga.processor.two];
    let proposed = [Uuid::now_v7(), Uuid::now_v7()];
    for (at, number) in [0, 1].into_iter().zip([0.0_f64, 1.0]) {
        let values = (proposed[at], Uuid::now_v7(), saga.users[at]);
        let client = superuser(processors[at]).await;
        client.execute(propose, &[&values.0, &values.1, &values.2, &number]).await.unwrap();
        // A copy on the other shard.
        let client = superuser(processors[1 - at]).await;
        client.execute(propose, &[&values.0, &values.1, &values.2, &number]).await.unwrap();
    }
    let listed = json(&saga.run(&["resolve", "list", "--json"]));
    let listed = listed["resolutions"].as_array().unwrap();
    let of = |index: usize| (listed[index]["resolution_id"].as_str(), listed[index]["shard"].as_str());
    let ids = proposed.map(|id| id.to_string());
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!((of(0), of(1)), ((Some(&*ids[1]), Some("two")), (Some(&*ids[0]), Some("one"))));
    drop((one, two));
    saga.finish().await;
}

/// Snapshots on both sides of a fence have no owner of its bucket. They are taken again until somebody has it.
#[tokio::test]
async fn whoever_looks_during_a_move_waits_for_its_end() {
    let pair = Pair::new(Database::Balance).await;
    let url = |harness: &Harness| harness.url("coro_checker").unwrap();
    let shards = format!("one={} two={}", url(&pair.one), url(&pair.two));
    let databases = ServiceDatabases::open("balance", &shards).await.unwrap();
    let bucket = Bucket::of(users()[0]);
    change(&pair.one, bucket.number(), 2, false, "two").await;
    let fenced = Snapshots::take(&databases, Duration::ZERO).await.unwrap();
    assert_eq!(fenced.undecided(), Some(Undecided { nobodys: vec![bucket.number()], contested: vec![] }));
    fenced.end().await.unwrap();

    let admin = superuser(&pair.one).await;
    let since: String = admin.query_one("select clock_timestamp()::text", &[]).await.unwrap().get(0);
    let has_looked = format!(
        "select count(*)::text from pg_stat_activity where datname = current_database() and usename = 'coro_checker'
            and query = 'rollback' and query_start > '{since}'"
    );
    let grant = async {
        super::until(&admin, &has_looked, "1").await;
        change(&pair.two, bucket.number(), 3, true, "one").await;
    };
    let take = Snapshots::take(&databases, Duration::from_secs(60));
    let (taken, ()) = tokio::join!(take, grant);
    let taken = taken.unwrap();
    assert_eq!(taken.undecided(), None);
    assert_eq!(taken.ownership.as_ref().unwrap().owner(bucket), Some(1));
    taken.end().await.unwrap();
    drop((databases, admin));
    pair.finish().await;
}
