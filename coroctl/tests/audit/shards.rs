//! Shards on real servers: what the commands print, and the SQL that copies the rows of a move.
//!
//! * [`moving`]: a mover, killed and hindered at each step. [`commands`], [`distributed`], [`interrupted`] and [`adopted`]: what
//!   an operator types. [`looking`]: what the commands that only look show of several shards.

mod adopted;
mod commands;
mod distributed;
mod interrupted;
mod looking;
mod moving;
mod relay;

use std::process::{Command, Output};

use coroctl::shard::mover::conditions_read::{self, Given};
use coroctl::shard::mover::{RelayListener, Shard, ShardUrl, observe};
use coroctl::shard::replication;
use saga::shards::bucket::Bucket;
use serde_json::Value;
use sql::Database;
use sql::harness::Harness;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::Client;
use uuid::Uuid;

use self::relay::Relay;
use crate::fixture::superuser;

/// Tests that subscribe run one after the other: a server has four workers for all subscriptions.
static SUBSCRIBES: Mutex<()> = Mutex::const_new(());

/// Two databases of one kind: the first owns every bucket, the second gave up its own.
struct Pair {
    one: Harness,
    two: Harness,
    relays: Vec<Relay>,
}

impl Pair {
    /// As they are made: each owns every bucket at the first epoch.
    async fn born(kind: Database) -> Self {
        let (one, two) = (Harness::new(kind).await.unwrap(), Harness::new(kind).await.unwrap());
        Self { one, two, relays: Vec::new() }
    }

    async fn new(kind: Database) -> Self {
        let pair = Self::born(kind).await;
        let give_up =
            "select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, null)
                         from owned_buckets";
        superuser(&pair.two).await.batch_execute(give_up).await.unwrap();
        pair
    }

    /// Whose databases are read by relays.
    async fn emitting(kind: Database) -> Self {
        let mut pair = Self::new(kind).await;
        pair.start_relays().await;
        pair
    }

    async fn start_relays(&mut self) {
        for harness in [&self.one, &self.two] {
            self.relays.push(Relay::of(harness).await);
        }
    }

    /// `coroctl shard COMMAND` on both.
    fn shard(&self, arguments: &[&str]) -> Output {
        let url = |harness: &Harness| harness.url("coro_checker").unwrap();
        let shards = format!("one={} two={}", url(&self.one), url(&self.two));
        let mut command = Command::new(env!("CARGO_BIN_EXE_coroctl"));
        command.env_clear().env("SHARDS", shards).arg("shard").args(arguments).output().unwrap()
    }

    /// `coroctl shard COMMAND` on both, as their superuser. The relay is that of the stack.
    fn admin(&self, arguments: &[&str]) -> Output {
        self.admin_of(["one", "two"], arguments)
    }

    /// With these names of the shards.
    fn admin_of(&self, [one, two]: [&str; 2], arguments: &[&str]) -> Output {
        let shards = format!("{one}={} {two}={}", superuser_url(&self.one), superuser_url(&self.two));
        self.admin_with(&shards, arguments)
    }

    fn admin_with(&self, shards: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coroctl"));
        let relay = std::env::var("RELAY_ADMIN_URL").expect("RELAY_ADMIN_URL");
        command.env_clear().env("SHARDS_ADMIN", shards).env("RELAY_ADMIN_URL", relay);
        command.arg("shard").args(arguments).output().unwrap()
    }

    /// Between which buckets can be moved, in a turn of one test at a time. None: there is nothing to try.
    async fn moving() -> Option<(MutexGuard<'static, ()>, Self)> {
        let turn = SUBSCRIBES.lock().await;
        let pair = Self::emitting(Database::Balance).await.with_row_filters().await?;
        Some((turn, pair))
    }

    /// Itself, unless its server is too old: row filters came with PostgreSQL 15, and before it a move is refused.
    async fn with_row_filters(self) -> Option<Self> {
        let version = "select current_setting('server_version_num')::int8";
        let version: i64 = superuser(&self.one).await.query_one(version, &[]).await.unwrap().get(0);
        if version >= 150_000 {
            return Some(self);
        }
        self.finish().await;
        None
    }

    /// What the user can spend on each shard, where the user has an account there.
    async fn accounts(&self, user: Uuid) -> [Option<i64>; 2] {
        [account(&self.one, user).await, account(&self.two, user).await]
    }

    async fn finish(self) {
        for relay in self.relays {
            relay.end().await;
        }
        self.one.finish().await.unwrap();
        self.two.finish().await.unwrap();
    }
}

fn superuser_url(harness: &Harness) -> String {
    let (server, _) = harness.admin_url().rsplit_once('/').unwrap();
    format!("{server}/{}", harness.name())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

async fn account(harness: &Harness, user: Uuid) -> Option<i64> {
    let select = "select available from accounts where user_id = $1";
    superuser(harness).await.query_opt(select, &[&user]).await.unwrap().map(|row| row.get(0))
}

/// Users of one bucket and of another.
fn users() -> [Uuid; 2] {
    let wanted = |number: u128| Uuid::from_u128(number);
    let first = wanted(1);
    let other = (2..).map(wanted).find(|user| Bucket::of(*user) != Bucket::of(first)).unwrap();
    [first, other]
}

async fn deposit(client: &Client, user: Uuid, available: i64) {
    let insert = "insert into accounts (user_id, available) values ($1, $2)";
    client.execute(insert, &[&user, &available]).await.unwrap();
}

async fn available(client: &Client) -> Vec<(Uuid, i64)> {
    let rows = client.query("select user_id, available from accounts order by 1", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until(client: &Client, question: &str, answer: &str) {
    for _ in 0..600 {
        let found: String = client.query_one(question, &[]).await.unwrap().get(0);
        if found == answer {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never {answer}: {question}");
}

#[tokio::test]
async fn lists_plans_and_verifies() {
    let pair = Pair::new(Database::Balance).await;
    let listed = json(&pair.shard(&["list", "--json"]));
    assert_eq!(listed["shards"][0]["owned"].as_array().unwrap().len(), 1024, "{listed}");
    assert_eq!(listed["shards"][1]["owned"].as_array().unwrap().len(), 0, "{listed}");
    let planned = json(&pair.shard(&["plan", "--json"]));
    let [step] = planned.as_array().unwrap().as_slice() else { panic!("{planned}") };
    assert_eq!((&step["from"], &step["to"]), (&Value::from("one"), &Value::from("two")));
    let count = step["buckets"].as_array().unwrap().len();
    assert!((400..625).contains(&count), "{count}");
    let drained = pair.shard(&["plan", "--drain", "two"]);
    assert!(String::from_utf8_lossy(&drained.stdout).contains("where it should be"), "{drained:?}");

    let [user, other] = users();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let clean = pair.shard(&["verify", "--json"]);
    assert_eq!((clean.status.code(), json(&clean)["rows"].as_i64()), (Some(0), Some(1)), "{clean:?}");
    // A copy, on a shard that does not own it.
    deposit(&superuser(&pair.two).await, user, 5).await;
    deposit(&superuser(&pair.two).await, other, 7).await;
    let dirty = pair.shard(&["verify", "--json"]);
    assert_eq!(dirty.status.code(), Some(1), "{dirty:?}");
    let strays = json(&dirty)["strays"].as_array().unwrap().clone();
    assert_eq!(strays.len(), 2, "{strays:?}");
    assert!(strays.iter().all(|stray| stray["shard"] == "two" && stray["owner"] == "one"), "{strays:?}");
    pair.finish().await;
}

#[tokio::test]
async fn buckets_of_two_owners_are_a_finding_without_any_row() {
    let pair = Pair::born(Database::Balance).await;
    let found = pair.shard(&["verify", "--json"]);
    let report = json(&found);
    assert_eq!(report["strays"].as_array().unwrap().len(), 0, "{report}");
    assert_eq!(report["contested"].as_array().unwrap().len(), 1024, "{report}");
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    pair.finish().await;
}

#[tokio::test]
async fn a_bucket_of_another_move_is_busy_on_whichever_shard_that_is() {
    let begin = "with begun as (
                     insert into moves (move_id, side, peer, buckets, source_epochs, target_epochs, source_incarnation,
                                        target_incarnation, tables, schema_version, relay_slots, operator)
                     values (gen_random_uuid(), 'source', 'three', '{7}', '{1}', '{2}', 'a', 'b', '{accounts}', 11, '{relay}', 'ada')
                     returning move_id)
                 insert into moving_buckets (bucket, move_id) select 7, move_id from begun";
    let pair = Pair::new(Database::Balance).await;
    let shard = async |harness: &Harness| {
        let url = ShardUrl { name: harness.name().to_owned(), url: superuser_url(harness) };
        Shard::connect(&url).await.unwrap()
    };
    let (source, target) = (shard(&pair.one).await, shard(&pair.two).await);
    let relay = RelayListener::default();
    let given = Given { relay: &relay, source_bytes_free: None, target_bytes_free: None };
    let busy = async || conditions_read::read(&source, &target, &[7, 8], &given).await.unwrap().busy_buckets;
    assert_eq!(busy().await, 0);
    for harness in [&pair.one, &pair.two] {
        let client = superuser(harness).await;
        client.batch_execute(begin).await.unwrap();
        assert_eq!(busy().await, 1);
        client.batch_execute("delete from moving_buckets").await.unwrap();
    }
    drop((source, target));
    pair.finish().await;
}

#[tokio::test]
async fn what_stands_against_a_move_is_found() {
    for (kind, identity, referring) in [
        (Database::Payments, vec![], vec![]),
        (Database::Balance, vec![], vec![]),
        (
            Database::Processor,
            vec!["charge_attempts", "charges", "resolutions"],
            vec!["resolution_confirmations"],
        ),
    ] {
        let harness = Harness::new(kind).await.unwrap();
        let client = superuser(&harness).await;
        let names =
            |rows: Vec<tokio_postgres::Row>| -> Vec<String> { rows.iter().map(|row| row.get(0)).collect() };
        let tables = names(client.query(replication::TABLES, &[]).await.unwrap());
        assert!(!tables.is_empty());
        let found = names(client.query(replication::WITHOUT_IDENTITY, &[&tables]).await.unwrap());
        assert_eq!(found, identity, "{kind:?}: {tables:?}");
        let found = names(client.query(replication::REFERRING, &[&tables]).await.unwrap());
        assert_eq!(found, referring, "{kind:?}: {tables:?}");
        drop(client);
        harness.finish().await.unwrap();
    }
}

/// An index whose included columns have `user_id` is no identity with it.
#[tokio::test]
async fn an_identity_needs_the_user_in_its_key() {
    let harness = Harness::new(Database::Processor).await.unwrap();
    let client = superuser(&harness).await;
    let charges = vec!["charges".to_owned()];
    let lacking = async || client.query(replication::WITHOUT_IDENTITY, &[&charges]).await.unwrap().len();
    for (index, expected) in [("(payment_id) include (user_id)", 1), ("(payment_id, user_id)", 0)] {
        let make = format!(
            "create unique index an_identity on charges {index}; alter table charges replica identity using index an_identity"
        );
        client.batch_execute(&make).await.unwrap();
        assert_eq!(lacking().await, expected, "{index}");
        client
            .batch_execute("alter table charges replica identity default; drop index an_identity")
            .await
            .unwrap();
    }
    drop(client);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn the_rows_of_a_bucket_are_copied_and_followed_and_removals_are_not() {
    let _turn = SUBSCRIBES.lock().await;
    let pair = Pair::new(Database::Balance).await;
    let Some(pair) = pair.with_row_filters().await else { return };
    let (source, target) = (superuser(&pair.one).await, superuser(&pair.two).await);
    let ([user, other], move_id) = (users(), Uuid::new_v4());
    deposit(&source, user, 5).await;
    deposit(&source, other, 7).await;
    let tables = vec!["accounts".to_owned(), "ledger".to_owned()];
    let buckets = [Bucket::of(user)];
    source
        .batch_execute(&replication::create_publication(move_id, &tables, &buckets).unwrap())
        .await
        .unwrap();
    for _ in 0..2 {
        source.batch_execute(&replication::create_slot(move_id)).await.unwrap();
    }
    let url = superuser_url(&pair.one);
    // In a transaction, as the move's record is locked.
    let subscribe = format!("begin; {}; commit", replication::create_subscription(move_id, &url));
    target.batch_execute(&subscribe).await.unwrap();
    let state = "select coalesce(string_agg(distinct srsubstate::text, ''), '') from pg_subscription_rel";
    until(&target, state, "r").await;
    assert_eq!(available(&target).await, [(user, 5)]);

    let update = "update accounts set available = available + 1";
    source.batch_execute(update).await.unwrap();
    until(&target, "select string_agg(available::text, ',') from accounts", "6").await;
    source.execute("delete from accounts where user_id = $1", &[&user]).await.unwrap();
    let lsn = source.query_one(replication::MARK, &[&replication::name(move_id)]).await.unwrap();
    let lsn: String = lsn.get(0);
    let slots = vec![replication::name(move_id)];
    loop {
        let confirmed = source.query_one(replication::CONFIRMED, &[&lsn, &slots]).await.unwrap();
        if confirmed.get(0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(available(&target).await, [(user, 6)]);

    let [disable, forget, drop_it] = replication::drop_subscription(move_id);
    target.batch_execute(&format!("begin; {disable}; {forget}; {drop_it}; commit")).await.unwrap();
    until(
        &source,
        "select count(*)::text from pg_replication_slots where active and database = current_database()",
        "0",
    )
    .await;
    for _ in 0..2 {
        source.batch_execute(&replication::drop_slot(move_id)).await.unwrap();
        source.batch_execute(&replication::drop_publication(move_id)).await.unwrap();
    }
    drop((source, target));
    pair.finish().await;
}

/// A relay's slot keeps a move waiting; what copies a table, or belongs to a move, does not.
#[tokio::test]
async fn the_slots_of_the_relay_are_known_from_the_others() {
    let harness = Harness::new(Database::Balance).await.unwrap();
    let client = superuser(&harness).await;
    let found = async || observe::relay_slots(&client).await.unwrap();
    assert_eq!(found().await, [] as [String; 0]);
    let number = Uuid::now_v7().as_u128() % 1_000_000_000;
    let names = [
        format!("pg_{number}_sync_16400_7312345678901234567"),
        replication::name(Uuid::from_u128(number)),
        format!("pg_{number}_relay"),
        format!("coro_{number}"),
    ];
    for name in &names {
        relay::make_slot(&client, name).await;
    }
    assert_eq!(found().await, [names[3].clone(), names[2].clone()]);

    let confirmed = async |slots: &[String]| -> bool {
        client.query_one(replication::CONFIRMED, &[&"0/1", &slots]).await.unwrap().get(0)
    };
    assert!(confirmed(&found().await).await);
    relay::drop_slot(&client, &names[3]).await;
    assert!(!confirmed(&names).await, "one of them is gone");
    assert!(!confirmed(&[]).await, "no slot confirms nothing");
    drop(client);
    harness.finish().await.unwrap();
}
