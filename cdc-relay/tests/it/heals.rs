//! Tests the resnapshot of one table whose rows were left out: the slot and the other tables go on.

use crate::harness::{Harness, Relay, eventually};
use crate::kafka;

async fn run(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn answer(harness: &Harness, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = harness.command(command).args(arguments).output().expect("the program");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Two tables, of which each has a row that was emitted.
async fn two(test: &str) -> (Harness, Relay) {
    let mut harness = Harness::new(test).await;
    let other = "create table others (id bigint primary key, version int not null default 1);
                 alter publication events add table others";
    run(&harness, other).await;
    let name = &harness.name;
    let more = format!(
        "\n[[sources.tables]]\nname = \"others\"\nid = \"it/others/{{id}}/{{version}}\"\n\
         [[sources.tables.routes]]\ntopic = \"{name}.items\"\ntype = \"other.v1\"\n"
    );
    harness.routes(&(harness.default_routes() + &more));
    let relay = harness.streaming().await;
    run(&harness, "insert into others values (1)").await;
    harness.row("a", 1, 1, "made").await;
    harness.row("a", 2, 1, "made").await;
    harness.confirmed().await;
    (harness, relay)
}

fn ids(harness: &Harness) -> Vec<String> {
    kafka::read(&harness.topic()).iter().map(|event| event.header("ce_id").to_owned()).collect()
}

const OUT_AND_IN: &str = "alter publication events drop table items;
    insert into items (owner, id, version) values ('lost', 1, 1); update items set version = 3 where id = 2;
    alter publication events add table items";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_taken_out_for_a_while_is_healed_alone() {
    let (harness, relay) = two("heals").await;
    // The row's next change is left out: the stream passes this one while the table is read.
    run(&harness, "update items set version = 2 where id = 2").await;
    run(&harness, OUT_AND_IN).await;
    relay.state("refused").await;
    run(&harness, "insert into others values (2); update items set version = 2 where id = 1 and owner = 'a'")
        .await;
    let (code, text) = answer(&harness, "resnapshot", &["--table", "others"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("items") && text.contains("put in again"), "{text}");
    let (code, text) = answer(&harness, "resnapshot", &["--table", "nothing"]);
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = answer(&harness, "verify", &[]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items"]);
    assert_eq!(code, Some(0), "{text}");
    relay.streams().await;
    let wanted = ["it/items/lost/1/1", "it/items/a/2/3", "it/items/a/1/2", "it/others/2/1"];
    eventually("what was left out", || async {
        let ids = ids(&harness);
        wanted.iter().all(|id| ids.iter().any(|found| found == id)).then_some(())
    })
    .await;
    harness.confirmed().await;
    let emitted = ids(&harness);
    let of_others = emitted.iter().filter(|id| id.starts_with("it/others/")).count();
    assert_eq!(of_others, 2, "the other table is not read again: {emitted:?}");
    // Never an older state of a row after a newer one.
    for (row, last) in [("it/items/a/2/", "3"), ("it/items/a/1/", "2")] {
        let versions: Vec<&str> = emitted.iter().filter_map(|id| id.strip_prefix(row)).collect();
        assert!(versions.is_sorted() && versions.last() == Some(&last), "{row}: {versions:?}");
    }
    eventually("verify to say whole", || async {
        (answer(&harness, "verify", &[]).0 == Some(0)).then_some(())
    })
    .await;
    let (_, text) = answer(&harness, "verify", &[]);
    assert!(text.contains("put in again") && text.contains("beginnings"), "{text}");
    let chains = kafka::read(&harness.topic())
        .iter()
        .filter(|event| event.header("pg_position").ends_with(";0/0"))
        .count();
    assert_eq!(chains, 1, "the chain goes on");
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items"]);
    assert_eq!(code, Some(2), "there is nothing more to heal: {text}");
    drop(relay);
}

/// The loss it prevents: while a source is refused nobody watches it, and another table may be taken out too.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_taken_out_meanwhile_is_not_passed_over() {
    let (harness, relay) = two("heals_meanwhile").await;
    run(&harness, OUT_AND_IN).await;
    relay.state("refused").await;
    run(
        &harness,
        "alter publication events drop table others; insert into others values (9);
         alter publication events add table others",
    )
    .await;
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("others"), "{text}");
    assert!(answer(&harness, "verify", &[]).0 == Some(1));
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items", "--table", "others"]);
    assert_eq!(code, Some(0), "{text}");
    relay.streams().await;
    eventually("both tables", || async {
        let ids = ids(&harness);
        ["it/items/lost/1/1", "it/others/9/1"]
            .iter()
            .all(|id| ids.iter().any(|found| found == id))
            .then_some(())
    })
    .await;
    drop(relay);
}

/// The loss it prevents: the stream, far behind, passes an older change of a row while the table is read, and the row's last
/// change is the one that was left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_last_change_was_left_out_is_read_though_the_stream_is_far_behind() {
    let (mut harness, relay) = two("heals_behind").await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    run(&harness, "insert into others select n from generate_series(1000, 80000) n").await;
    run(&harness, "update items set version = 2 where id = 2").await;
    run(&harness, OUT_AND_IN).await;
    let relay = harness.start();
    relay.state("refused").await;
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items"]);
    assert_eq!(code, Some(0), "{text}");
    // The read ends long before the stream gets there.
    relay.streams().await;
    eventually("the table to be read", || async { relay.log().contains("snapshot done").then_some(()) })
        .await;
    harness.confirmed().await;
    let emitted = ids(&harness);
    let versions: Vec<&str> = emitted.iter().filter_map(|id| id.strip_prefix("it/items/a/2/")).collect();
    assert_eq!(versions, ["1", "2", "3"]);
    assert!(emitted.iter().any(|id| id == "it/items/lost/1/1"));
    drop(relay);
}

/// The loss it prevents: only a pattern names the table, which is still out and has no entry in the routes.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_a_pattern_that_is_still_out_is_not_passed_over() {
    let mut harness = Harness::new("heals_pattern").await;
    let other = "create table others (id bigint primary key, version int not null default 1);
                 alter publication events add table others";
    run(&harness, other).await;
    let route = format!("topic = \"{}.items\"\ntype = \"row.v1\"", harness.name);
    harness.routes_of("", &format!("[[sources.tables]]\nname = \"*\"\n[[sources.tables.routes]]\n{route}"));
    let relay = harness.streaming().await;
    run(&harness, "insert into others values (1)").await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    // The session's own check of the contract is over: only the watch sees the change, and records the break.
    harness.publication_checked().await;
    run(&harness, "alter publication events drop table items, others").await;
    relay.state("refused").await;
    run(&harness, "insert into others values (2); alter publication events add table items").await;
    let (code, text) = answer(&harness, "resnapshot", &["--table", "items"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("others"), "{text}");
    drop(relay);
}
