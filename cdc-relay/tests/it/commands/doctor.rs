//! Tests `doctor`: it names each risk of loss with its fix.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;

use super::{json, ran};
use crate::harness::Harness;
use crate::kafka;

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
