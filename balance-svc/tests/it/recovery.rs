//! A ledger is restored from a copy that is older, and recovered from the topics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use balance_svc::config::Config;
use balance_svc::recovery;
use brokers::Brokers;
use clap::Parser;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::contract::{
    BALANCE_TOPIC, EventBody, HEADER_POSITION, HEADER_SOURCE, HEADER_TYPE, LedgerEntry, OPERATOR_TOPIC,
    PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC,
};
use saga::postgres::{self, Pool};
use saga::recovery::Program;
use saga::shards::bucket::Bucket;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::service::{AMOUNT, event};
use crate::{Ledger, declined, initiated, succeeded};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Every topic that a recovery reads, of a test's own.
struct Topics {
    prefix: String,
    producer: BaseProducer,
}

impl Topics {
    async fn new() -> Self {
        let prefix = format!("test-{}-", Uuid::new_v4());
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let parked = [PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC].map(|topic| format!("{topic}.parked"));
        let topics = [PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC, BALANCE_TOPIC, OPERATOR_TOPIC];
        for topic in topics.iter().copied().chain(parked.iter().map(String::as_str)) {
            let name = format!("{prefix}{topic}");
            let new = NewTopic::new(&name, 2, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        Self { prefix, producer: config.create().unwrap() }
    }

    fn produce(&self, topic: &str, key: &str, headers: &[(&str, &str)], body: &str) {
        self.produce_at(Timestamp::now(), topic, key, headers, body);
    }

    fn produce_at(&self, at: Timestamp, topic: &str, key: &str, headers: &[(&str, &str)], body: &str) {
        let topic = format!("{}{topic}", self.prefix);
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        // One partition, whose records have the places that the tests name.
        let record = BaseRecord::to(&topic).key(key).payload(body).partition(0);
        let record = record.timestamp(at.as_millisecond()).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Emits an entry as the relay does, with the time of its commit.
    fn emit(&self, entry: &LedgerEntry) {
        let kind = entry.event_type().unwrap().as_str();
        let headers = [(HEADER_TYPE, kind), (HEADER_SOURCE, "/coro/balance"), (HEADER_POSITION, "0/1;0;0/0")];
        let body = serde_json::to_string(entry).unwrap();
        self.produce_at(entry.created_at, BALANCE_TOPIC, &entry.user_id.to_string(), &headers, &body);
    }

    fn emit_all(&self, entries: &[LedgerEntry]) {
        entries.iter().for_each(|entry| self.emit(entry));
        self.flush();
    }

    fn flush(&self) {
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }
}

/// A copy of a ledger's database, as a restore makes one.
struct Restored<'a> {
    of: &'a Ledger,
    name: String,
    url: String,
    /// Whatever its incarnation.
    pool: Pool,
}

impl<'a> Restored<'a> {
    /// Everything that the ledger has now.
    async fn of(of: &'a Ledger) -> Self {
        let (original, name) = (of.harness.name(), format!("{}_copy", of.harness.name()));
        // A template must have no sessions. Those of the pool end soon; it connects again.
        of.pool.retain(|_, _| false);
        let admin = sql::connect(of.harness.admin_url()).await.unwrap();
        let copy = format!("create database {name} owner coro_owner template {original}");
        while let Err(error) = admin.batch_execute(&copy).await {
            assert_eq!(error.code(), Some(&SqlState::OBJECT_IN_USE), "{error}");
        }
        let url = of.harness.service_url().unwrap().replace(original, &name);
        let pool = postgres::pool(&url, 2, "test").unwrap();
        Self { of, name, url, pool }
    }

    async fn recover(&self, topics: &Topics, flags: &[&str]) -> anyhow::Result<()> {
        let fixed = [
            "balance-svc".to_owned(),
            "recover".to_owned(),
            "--operator=ada".to_owned(),
            "--reason=a test".to_owned(),
            format!("--database-url={}", self.url),
            format!("--kafka-brokers={}", std::env::var("KAFKA_BROKERS").unwrap()),
            format!("--topic-prefix={}", topics.prefix),
        ];
        let all = fixed.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned()));
        let Program::Recover(settings) = Program::<Config>::try_parse_from(all).unwrap() else {
            unreachable!("the command is recover")
        };
        recovery::run(*settings).await
    }

    /// Whether balance-svc gets a connection.
    async fn is_open(&self) -> bool {
        let (began, pool) = (Instant::now(), postgres::guarded_pool(&self.url, 1, "balance-svc").unwrap());
        loop {
            match postgres::reachable(&pool).await {
                Ok(()) => return true,
                Err(why) if why.contains("balance-svc recover") => return false,
                // A busy machine may take longer for a connection than a service waits.
                Err(why) => assert!(began.elapsed() < WAIT_TIMEOUT, "{why}"),
            }
        }
    }

    async fn end(self) {
        self.pool.close();
        let admin = sql::connect(self.of.harness.admin_url()).await.unwrap();
        admin.batch_execute(&format!("drop database {} with (force)", self.name)).await.unwrap();
    }
}

async fn rows(pool: &Pool, sql: &str) -> Vec<Row> {
    pool.get().await.unwrap().query(sql, &[]).await.unwrap()
}

/// Every entry in the order of its commit, as far as one user's go.
async fn entries(pool: &Pool) -> Vec<LedgerEntry> {
    let sql = "select user_id, payment_id, phase, kind, amount, service_id, reason, traceparent, created_at
                 from ledger order by user_id, created_at, entry_no";
    let entry = |row: &Row| LedgerEntry {
        user_id: row.get(0),
        payment_id: row.get(1),
        phase: row.get(2),
        kind: row.get(3),
        amount: row.get(4),
        service_id: row.get(5),
        reason: row.get(6),
        traceparent: row.get(7),
        created_at: row.get(8),
    };
    rows(pool, sql).await.iter().map(entry).collect()
}

/// Every column of both tables.
async fn whole(pool: &Pool) -> BTreeMap<String, String> {
    let tables = "select 'ledger ' || payment_id || ' ' || phase, to_jsonb(l)::text from ledger l
                  union all select 'account ' || user_id, to_jsonb(a)::text from accounts a";
    rows(pool, tables).await.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn number(pool: &Pool, sql: &str) -> i64 {
    rows(pool, sql).await[0].get(0)
}

/// Pays as each of these users: one payment is captured, one released, one rejected, one still held.
async fn pay(ledger: &Ledger, users: &[Uuid]) {
    for user in users {
        let [paid, refused, poor, held] = [(); 4].map(|()| Uuid::now_v7());
        let holds = [initiated(*user, paid, 30), initiated(*user, refused, 20), initiated(*user, poor, 900)];
        ledger.apply(&holds).await.unwrap();
        ledger
            .apply(&[succeeded(*user, paid, 30), initiated(*user, held, 5), declined(*user, refused, 20)])
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_backup_lacks_is_the_same_as_before_and_the_database_opens() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let mut users = vec![ledger.user_with(500).await, ledger.user_with(600).await];
    pay(&ledger, &users).await;
    let restored = Restored::of(&ledger).await;
    assert!(!restored.is_open().await, "a copy is another incarnation");
    // A user who comes after the backup, and more of the others.
    users.push(ledger.user_with(700).await);
    pay(&ledger, &users).await;
    let all = entries(&ledger.pool).await;
    topics.emit_all(&all);
    // Emitted again by an operator.
    topics.emit_all(&all[..all.len() / 2]);

    let before = whole(&restored.pool).await;
    restored.recover(&topics, &["--dry-run"]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, before, "a dry run changes nothing");
    assert!(!restored.is_open().await, "nor opens anything");

    restored.recover(&topics, &[]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, whole(&ledger.pool).await);
    assert!(restored.is_open().await);
    let opened = "select count(*) from incarnations where operator = 'ada' and reason = 'a test'";
    assert_eq!(number(&restored.pool, opened).await, 1);
    // Once more: everything is there.
    restored.recover(&topics, &[]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, whole(&ledger.pool).await);
    assert_eq!(number(&restored.pool, opened).await, 1);
    restored.end().await;
    ledger.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_emitted_is_made_anew_by_the_events_of_others() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let user = ledger.user_with(3 * AMOUNT).await;
    let [held, captured, neither] = [(); 3].map(|()| Uuid::now_v7());
    ledger.apply(&[initiated(user, captured, AMOUNT)]).await.unwrap();
    let restored = Restored::of(&ledger).await;
    topics.emit_all(&entries(&ledger.pool).await);
    // Committed after the backup, and lost before the relay had read it: two holds and a capture.
    for (topic, kind, payment) in [
        (PAYMENT_TOPIC, "payment.initiated.v1", held),
        (PAYMENT_TOPIC, "payment.initiated.v1", captured),
        (PAYMENT_TOPIC, "payment.initiated.v1", neither),
        (PAYMENT_TOPIC, "payment.rejected.v1", neither),
        (PAYMENT_RESULT_TOPIC, "payment.result.succeeded.v1", captured),
    ] {
        let (_, _, body) = event(topic, kind, user, payment);
        topics.produce(topic, &user.to_string(), &[(HEADER_TYPE, kind)], &body);
    }
    topics.flush();
    restored.recover(&topics, &[]).await.unwrap();
    let state = "select count(*) from accounts where available = 0 and held = 30000 and last_entry_no = 5";
    assert_eq!(number(&restored.pool, state).await, 1);
    let kinds = "select count(*) from ledger where kind = 'hold' or (kind = 'capture' and entry_no = 3)";
    assert_eq!(number(&restored.pool, kinds).await, 4, "what was captured set nothing free, and came first");
    restored.end().await;
    ledger.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_contradicts_the_ledger_keeps_the_database_closed() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let (user, other) = (ledger.user_with(100).await, ledger.user_with(100).await);
    let restored = Restored::of(&ledger).await;
    let payment = Uuid::now_v7();
    ledger.apply(&[initiated(user, payment, 100), initiated(other, Uuid::now_v7(), 60)]).await.unwrap();
    ledger.apply(&[succeeded(user, payment, 100)]).await.unwrap();
    let mut all = entries(&ledger.pool).await;
    // Somebody forged a hold of more than there is. What follows of that user cannot be trusted.
    let at = all.iter().position(|entry| entry.payment_id == payment).unwrap();
    all.insert(at, LedgerEntry { payment_id: Uuid::now_v7(), amount: 101, ..all[at].clone() });
    topics.emit_all(&all);
    let refused = restored.recover(&topics, &[]).await.unwrap_err().to_string();
    assert!(refused.starts_with("1 findings"), "{refused}");
    assert!(!restored.is_open().await);
    let of = |user: Uuid| format!("select count(*) from ledger where user_id = '{user}'");
    assert_eq!(number(&restored.pool, &of(user)).await, 1, "the deposit of the backup");
    assert_eq!(number(&restored.pool, &of(other)).await, 2, "others go on");
    restored.recover(&topics, &["--open-despite-findings"]).await.unwrap();
    assert!(restored.is_open().await);
    restored.end().await;
    ledger.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_recovery_of_a_database_runs_at_a_time() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    ledger.user_with(100).await;
    topics.emit_all(&entries(&ledger.pool).await);
    let restored = Restored::of(&ledger).await;
    let first = restored.pool.get().await.unwrap();
    first.batch_execute("select pg_advisory_lock(hashtext('coro recovery'))").await.unwrap();
    let refused = restored.recover(&topics, &[]).await.unwrap_err().to_string();
    assert!(refused.contains("another recovery"), "{refused}");
    assert!(!restored.is_open().await);
    first.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
    drop(first);
    restored.recover(&topics, &[]).await.unwrap();
    assert!(restored.is_open().await);
    restored.end().await;
    ledger.finish().await;
}

/// Its buckets have their first epochs, and the other shard may have been granted them since the backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_move_had_begun_has_to_be_adopted_before() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    ledger.user_with(100).await;
    topics.emit_all(&entries(&ledger.pool).await);
    let begin = "insert into moves (move_id, side, peer, buckets, source_epochs, target_epochs, source_incarnation,
                                    target_incarnation, tables, schema_version, relay_slots, operator)
                 values (gen_random_uuid(), 'source', 'two', '{7}', '{1}', '{2}', 'a', 'b', '{accounts}', 11, '{relay}', 'ada')";
    ledger.harness.owner().await.unwrap().batch_execute(begin).await.unwrap();
    let restored = Restored::of(&ledger).await;
    let refused = restored.recover(&topics, &[]).await.unwrap_err().to_string();
    assert!(refused.contains("--adopted"), "{refused}");
    assert!(!restored.is_open().await);
    restored.recover(&topics, &["--adopted"]).await.unwrap();
    assert!(restored.is_open().await);
    restored.end().await;
    ledger.finish().await;
}

/// Buckets went to and fro. What its backup owns may be another's by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_buckets_were_moved_has_to_be_adopted_before() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let user = ledger.user_with(100).await;
    let owner = ledger.harness.owner().await.unwrap();
    let other_bucket = (Bucket::of(user).number() + 1) % 1024;
    for (known, owned) in [(1_i64, false), (2, true)] {
        let change = "
            select change_ownership(array[$1::int2], array[$2::int8], array[$2::int8 + 1], $3, 'other')";
        owner.execute(change, &[&other_bucket, &known, &owned]).await.unwrap();
    }
    drop(owner);
    let restored = Restored::of(&ledger).await;
    ledger.apply(&[initiated(user, Uuid::now_v7(), 10)]).await.unwrap();
    topics.emit_all(&entries(&ledger.pool).await);
    let before = whole(&restored.pool).await;
    let refused = restored.recover(&topics, &[]).await.unwrap_err().to_string();
    assert!(refused.contains("--adopted"), "{refused}");
    restored.recover(&topics, &["--dry-run"]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, before);
    assert!(!restored.is_open().await);
    restored.recover(&topics, &["--adopted"]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, whole(&ledger.pool).await);
    assert!(restored.is_open().await);
    restored.end().await;
    ledger.finish().await;
}

/// The first event that is read was committed after the backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_after_the_backup_is_noticed() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let user = ledger.user_with(100).await;
    let restored = Restored::of(&ledger).await;
    for _ in 0..2 {
        ledger.apply(&[initiated(user, Uuid::now_v7(), 10)]).await.unwrap();
    }
    let all = entries(&ledger.pool).await;
    topics.emit_all(&all);
    let late = format!("--since={}", all[2].created_at);
    let refused = restored.recover(&topics, &[&late]).await.unwrap_err().to_string();
    assert!(refused.starts_with("the recovery ends at the finding"), "{refused}");
    assert!(!restored.is_open().await);
    assert_eq!(number(&restored.pool, "select count(*) from ledger").await, 1, "nothing was written");
    restored.recover(&topics, &[]).await.unwrap();
    assert_eq!(whole(&restored.pool).await, whole(&ledger.pool).await, "the right time makes all of them");
    restored.end().await;
    ledger.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_parked_is_put_back_as_it_was() {
    let (ledger, topics) = (Ledger::new().await, Topics::new().await);
    let restored = Restored::of(&ledger).await;
    let parked_id = format!("{}{PAYMENT_TOPIC}/0/0", topics.prefix);
    // Read by the consumer too: it is not parked as another one.
    topics.produce(PAYMENT_TOPIC, "k", &[(HEADER_TYPE, "no.type")], "no JSON");
    let row = serde_json::json!({
        "parked_id": parked_id, "source": format!("{}{PAYMENT_TOPIC}", topics.prefix), "message_key": "k",
        "type": "no.type", "headers": {HEADER_TYPE: "no.type"}, "body": "bm8gSlNPTg==",
        "reason": "said then", "parked_at": "2026-01-02T03:04:05.123456Z",
    });
    let act = serde_json::json!({
        "parked_id": parked_id, "act": "dismissed", "operator": "bob", "reason": "noise", "outcome": "no event",
        "acted_at": "2026-01-02T03:05:05.123456Z",
    });
    let topic = format!("{PAYMENT_TOPIC}.parked");
    for source in ["/coro/balance", "/coro/processor"] {
        let headers = [(HEADER_TYPE, "message.parked.v1"), (HEADER_SOURCE, source)];
        topics.produce(&topic, &parked_id, &headers, &row.to_string());
    }
    let headers = [(HEADER_TYPE, "message.dismissed.v1"), (HEADER_SOURCE, "/coro/balance")];
    topics.produce(OPERATOR_TOPIC, &parked_id, &headers, &act.to_string());
    let opened = serde_json::json!({
        "act_id": Uuid::from_u128(7), "incarnation": "before", "act": "opened", "operator": "bob", "reason": "disk lost",
        "acted_at": "2026-01-02T03:03:05.123456Z",
    });
    for source in ["/coro/balance", "/coro/payments"] {
        let headers = [(HEADER_TYPE, "database.opened.v1"), (HEADER_SOURCE, source)];
        let act = match source {
            "/coro/balance" => opened.to_string(),
            // Of another database.
            _ => opened.to_string().replace("before", "elsewhere").replace("007", "008"),
        };
        topics.produce(OPERATOR_TOPIC, "before", &headers, &act);
    }
    topics.flush();
    restored.recover(&topics, &[]).await.unwrap();
    let put_back = "select count(*) from parked join parked_acts using (parked_id)
                     where body = 'no JSON' and parked.reason = 'said then' and operator = 'bob'
                       and parked_at = '2026-01-02T03:04:05.123456Z' and acted_at = '2026-01-02T03:05:05.123456Z'";
    assert_eq!(number(&restored.pool, put_back).await, 1);
    assert_eq!(number(&restored.pool, "select count(*) from parked").await, 1);
    // And the opening by this recovery, which is another act.
    let acts = "select count(*) from incarnation_acts where act = 'opened' and (operator, incarnation) in
                    (('bob', 'before'), ('ada', incarnation()))";
    assert_eq!(number(&restored.pool, acts).await, 2);
    assert_eq!(number(&restored.pool, "select count(*) from incarnation_acts").await, 2);
    restored.end().await;
    ledger.finish().await;
}
