//! Tests the commands as a person runs them: their output and their exit codes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use crate::harness::{Harness, eventually};
use crate::kafka::{self, distinct};

/// Runs a command to its end: exit code, standard output, standard error.
fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// As JSON, with the exit code.
fn json(command: &mut Command) -> (Option<i32>, Value) {
    let (code, out, error) = ran(command.arg("--json"));
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}{error}")))
}

/// The findings of doctor's report whose severity is not fine.
fn bad(report: &Value) -> Vec<&Value> {
    let sections = report["sections"].as_array().expect("sections");
    let findings = sections.iter().flat_map(|section| section["findings"].as_array().expect("findings"));
    findings.filter(|finding| finding["severity"] != "ok").collect()
}

/// SQL that plants a risk, SQL that repairs it, and doctor's finding meanwhile: severity, check, part of the fix.
const RISKS: &[(&str, &str, [&str; 3])] = &[
    (
        "alter publication events set (publish = 'insert')",
        "alter publication events set (publish = 'insert, update')",
        [
            "would_lose_data",
            "publication.operations",
            "alter publication events set (publish = 'insert, update');",
        ],
    ),
    (
        "alter publication events drop table items",
        "alter publication events add table items",
        ["would_lose_data", "table.published", "alter publication events add table public.items;"],
    ),
    (
        "alter publication events drop table items; alter table items set unlogged",
        "alter table items set logged; alter publication events add table items",
        ["would_lose_data", "table.unlogged", "alter table public.items set logged;"],
    ),
    (
        "alter table items rename to kept; create table items (like kept) partition by list (kind);
         alter publication events set table items",
        "drop table items; alter table kept rename to items; alter publication events set table items",
        ["would_lose_data", "table.partitions", "set (publish_via_partition_root = true);"],
    ),
    (
        "alter publication events set table items (owner, id, version)",
        "alter publication events set table items",
        ["would_not_work", "table.columns", "alter publication events set table public.items"],
    ),
    (
        "alter publication events set table items where (version > 1)",
        "alter publication events set table items",
        ["would_not_work", "table.row_filter", "alter publication events add table public.items; commit;"],
    ),
    (
        "alter publication events set table items where (owner <> 'x')",
        "alter publication events set table items",
        ["would_not_work", "table.row_filter", "deletes = "],
    ),
    (
        "create table other (id int primary key); alter publication events add table other",
        "drop table other",
        ["would_not_work", "table.routes", "alter publication events drop table public.other;"],
    ),
    (
        "alter table items drop constraint items_pkey",
        "alter table items add constraint items_pkey primary key (owner, id)",
        ["would_not_work", "table.identity", "alter table public.items replica identity full;"],
    ),
    (
        "alter table items alter note set storage external;
         insert into items (owner, id, version, note) values ('a', 9, 1, repeat('x', 9000))",
        "delete from items; vacuum full items",
        ["warning", "table.large_values", "alter table public.items replica identity full;"],
    ),
    (
        "select pg_create_physical_replication_slot(current_database(), true)",
        "select pg_drop_replication_slot(current_database())",
        ["would_not_work", "slot.kind", "give this source a slot name of its own"],
    ),
    (
        "select pg_create_logical_replication_slot(current_database(), 'pgoutput')",
        "select pg_drop_replication_slot(current_database())",
        ["would_lose_data", "slot.checkpoint", ""],
    ),
    (
        "drop publication events",
        "create publication events for table items with (publish = 'insert, update')",
        ["would_not_work", "publication.exists", "create publication events for table public.items"],
    ),
];

#[tokio::test]
async fn doctor_names_each_risk_of_loss_with_its_fix() {
    let harness = Harness::new("doctor").await;
    for (plant, repair, [severity, check, fix]) in RISKS {
        for statement in plant.split(';') {
            harness
                .sql
                .batch_execute(statement)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        let (code, report) = json(&mut harness.command("doctor"));
        for statement in repair.split(';') {
            harness
                .sql
                .batch_execute(statement)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        let bad = bad(&report);
        let found = bad.iter().find(|finding| finding["check"] == *check);
        let found = found.unwrap_or_else(|| panic!("{check} is not in {bad:#?}"));
        assert_eq!(found["severity"], *severity, "{found:#}");
        let fixes = found["fix"].as_array().map(Vec::as_slice).unwrap_or_default();
        let fixed =
            fix.is_empty() || fixes.iter().any(|line| line.as_str().is_some_and(|line| line.contains(fix)));
        assert!(fixed, "{fix} is not in {found:#}");
        assert_eq!(code, Some(i32::from(*severity != "warning")), "{bad:#?}");
    }
    let (code, report) = json(&mut harness.command("doctor"));
    assert_eq!(code, Some(0), "a repaired database has findings: {:#?}", bad(&report));
}

#[tokio::test]
async fn doctor_sees_topics_and_queues_that_lose_what_they_took() {
    let harness = Harness::new("doctor_brokers").await;
    let admin: AdminClient<DefaultClientContext> = kafka::admin().create().expect("admin");
    let (items, state, dead) =
        (harness.topic(), format!("{}.state", harness.name), harness.dead_letter_topic());
    let one = || TopicReplication::Fixed(1);
    let topics = [
        NewTopic::new(&items, 2, one()).set("retention.ms", "60000"),
        NewTopic::new(&state, 1, one()).set("cleanup.policy", "delete"),
        NewTopic::new(&dead, 1, one()).set("retention.ms", "60000"),
    ];
    for made in admin.create_topics(&topics, &AdminOptions::new()).await.expect("topics") {
        made.expect("a topic");
    }
    let connection = lapin::Connection::connect(&harness.amqp_url, lapin::ConnectionProperties::default());
    let connection = connection.await.expect("RabbitMQ");
    let channel = connection.create_channel().await.expect("channel");
    let durable = lapin::options::QueueDeclareOptions::durable();
    channel
        .queue_declare(harness.queue().into(), durable, lapin::types::FieldTable::default())
        .await
        .expect("queue");
    let (code, report) = json(&mut harness.command("doctor"));
    let _ = channel.queue_delete(harness.queue().into(), lapin::options::QueueDeleteOptions::default()).await;
    let bad = bad(&report);
    for check in ["kafka.retention", "kafka.state", "kafka.dead_letters", "rabbitmq.queue"] {
        let found = bad.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("{check} is not in {bad:#?}"));
        assert_eq!(found["severity"], "would_lose_data", "{found:#}");
        assert!(!found["fix"][0].as_str().unwrap_or_default().is_empty(), "{found:#}");
    }
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn doctor_looks_at_a_database_without_a_routes_file_and_says_what_it_left() {
    let harness = Harness::new("doctor_url").await;
    harness.sql.batch_execute("create table keyless (n int)").await.expect("table");
    let (code, out, _) = ran(harness.command("doctor").arg(&harness.url));
    assert_eq!(code, Some(0), "{out}");
    for part in ["table public.keyless", "replica identity full;", "Not checked: Kafka and RabbitMQ"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "colours in a pipe");
    // An unreachable server and an unusable URL are no answer.
    let (code, _, error) = ran(harness.command("doctor").arg("postgres://nobody@127.0.0.1:1/none"));
    assert_eq!(code, Some(2), "{error}");
    let (code, _, error) = ran(harness.command("doctor").args(["--routes", "/nowhere/relay.toml"]));
    assert_eq!(code, Some(64), "{error}");
    assert!(error.contains("give a connection string"), "{error}");
}

pub struct Tail {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Tail {
    /// Starts a tail and waits until it reads.
    pub fn start(harness: &Harness, arguments: &[&str]) -> Tail {
        let mut child = harness
            .command("tail")
            .arg(&harness.url)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tail");
        let message = BufReader::new(child.stderr.take().expect("stderr"));
        let mut before = String::new();
        let mut reads = false;
        // The rest of the output stays unread: it is short.
        for line in message.lines().map_while(Result::ok) {
            before.push_str(&line);
            reads = line.starts_with("Reading.");
            if reads {
                break;
            }
        }
        assert!(reads, "{before}");
        let lines = BufReader::new(child.stdout.take().expect("stdout"));
        Tail { child, lines }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn left_behind(harness: &Harness) -> Vec<String> {
    let query = "select pubname::text from pg_publication where pubname like 'cdc_relay_tail%'
                 union all select slot_name::text from pg_replication_slots
                 where slot_name like 'cdc_relay_tail%' and database = current_database()";
    harness.sql.query(query, &[]).await.expect("catalog").iter().map(|row| row.get(0)).collect()
}

/// The server drops the slot a moment after its session has ended.
async fn nothing_left(harness: &Harness) {
    eventually("slot and publication of the tail to be dropped", || async {
        left_behind(harness).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn tail_shows_each_change_and_leaves_nothing_behind() {
    let harness = Harness::new("tail").await;
    let prepare = "create table keyless (n int); insert into keyless values (1);
                   create table whole (id int primary key, v text); alter table whole replica identity full;
                   insert into whole values (1, 'x')";
    harness.sql.batch_execute(prepare).await.expect("tables");
    let mut tail = Tail::start(&harness, &["--json", "--limit", "6"]);
    // The updates of a table without a key must not fail because it is published.
    harness
        .sql
        .batch_execute("update keyless set n = 2; delete from keyless")
        .await
        .expect("a writer goes on");
    let changes = "insert into items (owner, id, version, note) values ('a', 1, 1, 'x y');
                   update items set version = 2 where owner = 'a'; delete from items where owner = 'a';
                   update whole set v = 'y'; insert into keyless values (3); truncate keyless";
    harness.sql.batch_execute(changes).await.expect("changes");
    let lines: Vec<Value> = (0..6).map(|_| serde_json::from_str(&tail.line()).expect("an object")).collect();
    let shown: Vec<_> =
        lines.iter().map(|line| (line["table"].as_str(), line["operation"].as_str())).collect();
    let expected = [
        ("public.items", "insert"),
        ("public.items", "update"),
        ("public.items", "delete"),
        ("public.whole", "update"),
        ("public.keyless", "insert"),
        ("public.keyless", "truncate"),
    ];
    assert_eq!(shown, expected.map(|(table, operation)| (Some(table), Some(operation))));
    assert_eq!(lines[0]["after"]["note"], "x y");
    assert_eq!(lines[0]["key"], serde_json::json!({"owner": "a", "id": 1}));
    assert_eq!((&lines[3]["before"]["v"], &lines[3]["after"]["v"]), (&"x".into(), &"y".into()));
    assert_eq!(lines[3]["key"], serde_json::json!({"id": 1}));
    assert_eq!(tail.child.wait().expect("end").code(), Some(0));
    nothing_left(&harness).await;
}

#[tokio::test]
async fn a_tail_that_was_killed_leaves_no_slot_and_the_next_one_drops_its_publication() {
    let harness = Harness::new("tail_killed").await;
    let mut killed = Tail::start(&harness, &[]);
    killed.child.kill().expect("kill");
    killed.child.wait().expect("wait");
    eventually("the slot to be dropped", || async {
        let left = left_behind(&harness).await;
        // Two publications; a slot would be a third.
        (left.len() == 2).then_some(())
    })
    .await;
    let mut tail = Tail::start(&harness, &[]);
    harness.row("a", 1, 1, "made").await;
    assert!(tail.line().contains("transaction"));
    assert!(tail.line().contains("insert   items  owner=a  id=1  version=1"));
    assert_eq!(left_behind(&harness).await.len(), 3, "two publications and a slot, of the second tail");
    let pid = rustix::process::Pid::from_child(&tail.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("Ctrl-C");
    assert_eq!(tail.child.wait().expect("end").code(), Some(0));
    nothing_left(&harness).await;
}

#[tokio::test]
async fn a_slot_that_is_only_looked_at_stays_where_it_is() {
    let harness = Harness::new("tail_slot").await;
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    harness.sql.execute(make, &[&harness.name]).await.expect("make");
    let (_, before) = harness.positions().await;
    harness.row("a", 1, 1, "made").await;
    for _ in 0..2 {
        let arguments = ["--json", "--publication", "events", "--from-slot", &harness.name, "--limit", "1"];
        let mut tail = Tail::start(&harness, &arguments);
        let line: Value = serde_json::from_str(&tail.line()).expect("an object");
        assert_eq!(line["after"]["owner"], "a", "an unconfirmed change is missing in a later tail");
        assert_eq!(tail.child.wait().expect("end").code(), Some(0));
        harness.slot_is_free().await;
    }
    assert_eq!(harness.positions().await.1, before);
}

/// Writes a record with this position, as if the relay had emitted it.
fn forge(topic: &str, position: &str) {
    let producer: BaseProducer = kafka::admin().create().expect("producer");
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_source", value: Some("/it") })
        .insert(Header { key: "pg_position", value: Some(position) });
    producer.send(BaseRecord::to(topic).key("k").payload("{}").headers(headers)).expect("send");
    producer.flush(std::time::Duration::from_secs(10)).expect("flush");
}

#[tokio::test]
async fn verify_proves_a_chain_and_finds_the_transaction_that_is_missing() {
    let mut harness = Harness::new("verify").await;
    // A dead letter counts as a record of its transaction too.
    harness.routes(&harness.default_routes().replace("[relay]", "[relay]\nmax_record_bytes = 5000"));
    let relay = harness.streaming().await;
    for id in 0..20 {
        harness.row(&format!("o{}", id % 3), id, 1, "made").await;
    }
    let large =
        "insert into items (owner, id, version, note) values ('b', 1, 1, repeat('x', 9000)), ('c', 1, 1, '')";
    harness.sql.batch_execute(large).await.expect("a large row");
    distinct(&harness.topic(), 21).await;
    harness.confirmed().await;
    drop(relay);
    let (code, report) = json(&mut harness.command("verify"));
    assert_eq!(code, Some(0), "{report:#}");
    let source = &report["sources"][0];
    assert_eq!((&source["source"], &source["transactions"]), (&"/it".into(), &21.into()), "{report:#}");
    assert_eq!((&source["events"], &source["chains"]), (&22.into(), &1.into()), "{report:#}");
    let last = source["last"].as_str().expect("last").to_owned();

    // Without the dead-letter topic a record is missing, or at least a transaction's end.
    forge(&harness.topic(), "FFFF/20;0;FFFF/10");
    let (code, out, error) = ran(&mut harness.command("verify"));
    assert_eq!(code, Some(1), "{out}{error}");
    let message =
        format!("commit FFFF/20 names FFFF/10 before it, which is nowhere: the one before it here is {last}");
    assert!(out.contains(&message), "{message} is not in\n{out}");
    let (code, report) = json(harness.command("verify").args(["--topic", &harness.topic()]));
    assert_eq!((code, &report["whole"]), (Some(1), &false.into()), "{report:#}");
    let (code, _, error) = ran(harness.command("verify").env_remove("KAFKA_CONFIG").args([
        "--kafka-brokers",
        "127.0.0.1:1",
        "--topic",
        "x",
    ]));
    assert_eq!(code, Some(2), "{error}");
}

#[tokio::test]
async fn status_shows_a_source_that_streams_and_one_that_stands_still() {
    let mut harness = Harness::new("status").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    let admin = relay.admin.to_string();
    let (code, report) = json(harness.command("status").args(["--admin", &admin]));
    assert_eq!(code, Some(0), "{report:#}");
    let source = &report["sources"][0];
    assert_eq!((&source["source"], &source["state"]), (&"it".into(), &"streaming".into()), "{report:#}");
    assert_eq!(source["slot_status"]["wal_status"], "reserved");
    assert!(source["checkpoint"]["acknowledged"].as_str().is_some_and(|lsn| lsn.contains('/')));
    assert_eq!(report["topics"][harness.topic()]["end"], 1);
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let (code, out, _) = ran(harness.command("status").args(["--admin", &admin]));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("is not being read") && out.contains("the relay does not answer"), "{out}");
}
