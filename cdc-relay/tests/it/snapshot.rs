//! Tests the snapshot beside the stream.
//!
//! * Every existing row is emitted.
//! * No row is emitted in an older state than before.
//! * After a kill the snapshot goes on from its last chunk.

mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::Client;

use crate::harness::{Harness, Relay, connect, eventually};
use crate::kafka::{self, Event, chain};

/// More than ten chunks.
const ROWS: i64 = 25_000;

async fn filled(test: &str, rows: i64) -> Harness {
    let harness = Harness::new(test).await;
    fill(&harness, rows).await;
    harness.routes(&with_snapshot(&harness));
    harness
}

async fn fill(harness: &Harness, rows: i64) {
    let insert = "insert into items (owner, id, version, at) select 'o''\"' || n % 5, n, 1, now()
                  from generate_series(1, $1::int8) n";
    harness.sql.execute(insert, &[&rows]).await.expect("rows");
}

fn with_snapshot(harness: &Harness) -> String {
    harness.default_routes().replace("subject = \"{id}\"", "subject = \"{id}\"\nsnapshot = true")
}

/// The state topic's record of a table.
fn position(harness: &Harness, table: &str) -> Option<serde_json::Value> {
    let key = format!("it/{0}/snapshot/public.{table}", harness.name);
    let records = kafka::read(&format!("{}.state", harness.name));
    let last = records.iter().rfind(|event| event.key == key)?;
    Some(last.json())
}

async fn done(harness: &Harness, table: &str) -> serde_json::Value {
    eventually(&format!("the snapshot of {table} to be done"), || async {
        position(harness, table).filter(|position| position["done"] == true)
    })
    .await
}

/// Changes rows all over the table until it is stopped: one in a row, some twice in a transaction, some moved to another
/// key.
async fn changes(url: String, table: String, stop: Arc<AtomicBool>) -> u32 {
    let sql = connect(&url).await;
    let update = format!(
        "update {table} set version = version + 1 where id in
         (select (random() * $1::int8)::int8 from generate_series(1, 20))"
    );
    let update = sql.prepare(&update).await.expect("statement");
    let mut transactions = 0;
    while !stop.load(Ordering::Relaxed) {
        sql.execute(&update, &[&ROWS]).await.expect("update");
        transactions += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    transactions
}

fn row_of(event: &Event) -> (String, i64) {
    (event.key.clone(), event.json()["id"].as_i64().expect("id"))
}

fn version_of(event: &Event) -> i64 {
    event.json()["version"].as_i64().expect("version")
}

/// The versions of each row in the order of their events.
fn versions<'e>(events: impl IntoIterator<Item = &'e Event>) -> BTreeMap<(String, i64), Vec<i64>> {
    let mut versions = BTreeMap::<_, Vec<i64>>::new();
    for event in events {
        let id = format!("it/items/{}/{}/{}", event.key, row_of(event).1, version_of(event));
        assert_eq!(event.header("ce_id"), id);
        versions.entry(row_of(event)).or_default().push(version_of(event));
    }
    versions
}

/// Checks that every row of the table was emitted, last in its present state.
async fn whole(harness: &Harness, versions: &BTreeMap<(String, i64), Vec<i64>>) {
    let rows = harness.sql.query("select owner, id, version from items", &[]).await.expect("rows");
    assert_eq!(rows.len(), versions.len());
    for row in rows {
        let key = (row.get::<_, String>(0), row.get::<_, i64>(1));
        let emitted = versions.get(&key).unwrap_or_else(|| panic!("{key:?} was not emitted"));
        assert_eq!(emitted.iter().max(), Some(&i64::from(row.get::<_, i32>(2))), "{key:?}: {emitted:?}");
    }
}

/// Makes the slot, and opens a transaction that a snapshot by these routes waits for at its first chunk. It ends with the session
/// that is returned.
async fn held_up(harness: &mut Harness, routes: &str) -> Client {
    harness.routes(&routes.replace("\nsnapshot = true", ""));
    harness.streaming().await.stop().await;
    harness.slot_is_free().await;
    harness.routes(routes);
    let open = connect(&harness.url).await;
    open.batch_execute("begin; select pg_current_xact_id()").await.expect("a transaction");
    open
}

/// Waits until the snapshot has asked for the transactions that it waits for.
async fn waits(harness: &Harness) {
    eventually("the snapshot to wait", || async {
        let asks = "select 1 from pg_stat_activity where datname = current_database()
                    and application_name = 'cdc-relay snapshot' and query = 'rollback'";
        (!harness.sql.query(asks, &[]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
}

/// Changes the table while a relay takes its snapshot by these routes, and checks that no row goes back. Returns the relay, the
/// table's record and all events.
async fn snapshot_under_changes(
    harness: &mut Harness,
    table: &str,
    routes: &str,
) -> (Relay, serde_json::Value, Vec<Event>) {
    let open = held_up(harness, routes).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(changes(harness.url.clone(), table.to_owned(), Arc::clone(&stop)));
    let relay = harness.streaming().await;
    // Rows of the first chunk change before it is read, and after the snapshot began.
    waits(harness).await;
    let changed = || async {
        let sum = format!("select sum(version) from {table}");
        harness.sql.query_one(&sum, &[]).await.expect("versions").get::<_, i64>(0)
    };
    let before = changed().await;
    eventually("changes", || async { (changed().await > before + 1_000).then_some(()) }).await;
    open.batch_execute("commit").await.expect("commit");
    let position = done(harness, table).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.expect("load") > 10);
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    for (row, versions) in &versions(&events) {
        assert!(versions.is_sorted(), "{row:?}: {versions:?}");
    }
    let emitted = events.iter().filter(|event| event.header("pg_position").is_empty()).count();
    assert!(emitted < ROWS as usize, "no change fell under the snapshot: the test shows nothing");
    (relay, position, events)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_under_the_snapshot_do_not_go_back() {
    let mut harness = Harness::new("under").await;
    fill(&harness, ROWS).await;
    let routes = with_snapshot(&harness);
    let (relay, position, events) = snapshot_under_changes(&mut harness, "items", &routes).await;
    assert_eq!(position["rows"], ROWS);
    whole(&harness, &versions(&events)).await;
    // The snapshot's events are no links of the chain, and the chain is closed without them.
    let (streamed, emitted): (Vec<Event>, Vec<Event>) =
        events.into_iter().partition(|event| !event.header("pg_position").is_empty());
    chain(&streamed);
    let metric = |name: &str| {
        relay.metric(&format!("cdc_relay_snapshot_{name}{{source=\"it\",table=\"public.items\"}}"))
    };
    assert_eq!(metric("rows_total") as usize, emitted.len());
    assert_eq!(metric("passed_rows") as i64, ROWS);
    drop(relay);
}

/// The stream and the routes name such a table in two ways, and the window must know that they mean one.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_whose_name_is_quoted_do_not_go_back() {
    const TABLE: &str = "\"it.ems\"";
    let mut harness = Harness::new("quoted").await;
    fill(&harness, ROWS).await;
    harness.sql.batch_execute(&format!("alter table items rename to {TABLE}")).await.expect("another name");
    let routes = with_snapshot(&harness).replace("name = \"items\"", &format!("name = '{TABLE}'"));
    drop(snapshot_under_changes(&mut harness, TABLE, &routes).await);
}

#[tokio::test]
async fn a_table_that_is_done_is_not_emitted_again_and_one_that_comes_later_is() {
    let mut harness = filled("later", 3000).await;
    harness.streaming().await.stop().await;
    let relay = harness.streaming().await;
    done(&harness, "items").await;
    harness.confirmed().await;
    relay.stop().await;
    let emitted = kafka::read(&harness.topic()).len();
    harness
        .sql
        .batch_execute(
            "create table notes (id uuid primary key default gen_random_uuid(), owner text);
             insert into notes (owner) select 'n' from generate_series(1, 5);
             alter publication events add table notes;",
        )
        .await
        .expect("another table");
    let table = format!(
        "\n[[sources.tables]]\nname = \"notes\"\nkey = \"{{owner}}\"\nid = \"it/notes/{{id}}\"\nsnapshot = true\n
         [[sources.tables.routes]]\ntopic = \"{}\"\ntype = \"note.v1\"\n",
        harness.topic()
    );
    harness.routes(&(with_snapshot(&harness) + &table));
    let relay = harness.streaming().await;
    assert_eq!(done(&harness, "notes").await["rows"], 5);
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    assert_eq!(events.iter().filter(|event| event.header("ce_type") == "note.v1").count(), 5);
    assert_eq!(events.len(), emitted + 5);
    drop(relay);
}

#[tokio::test]
async fn large_rows_are_read_in_small_chunks() {
    let mut harness = Harness::new("large").await;
    let insert = "insert into items (owner, id, version, doc) select 'o', n, 1, to_jsonb(repeat('x', 300000))
                  from generate_series(1, 40) n";
    harness.sql.batch_execute(insert).await.expect("rows");
    harness.routes(&with_snapshot(&harness));
    let relay = harness.streaming().await;
    assert_eq!(done(&harness, "items").await["rows"], 40);
    let positions = kafka::read(&format!("{}.state", harness.name));
    let chunks = positions.iter().filter(|event| event.key.ends_with("/snapshot/public.items")).count();
    assert!(chunks > 5, "{chunks} chunks");
    assert_eq!(kafka::read(&harness.topic()).len(), 40);
    drop(relay);
}

#[tokio::test]
async fn a_key_of_any_types_is_paged_through() {
    let mut harness = Harness::bare("keys").await;
    harness.sql
        .batch_execute(
            r#"create table items (
                   owner text, a char(5), b timestamptz, c bytea, "D ""d" numeric, e bit(3), f interval, g uuid,
                   id bigint unique, version int default 1, kind text default 'made', note text, at timestamptz, amount bigint,
                   primary key (a, b, "D ""d", e, f, c, g, owner)
               );
               create publication events for table items with (publish = 'insert, update');
               insert into items (owner, a, b, c, "D ""d", e, f, g, id)
               select 'o', chr(97 + n % 3) || 'b', '2026-01-01Z'::timestamptz + n % 7 * interval '1.5 day', sha256(n::text::bytea),
                      n % 5 / 3.0, (n % 8)::bit(3), n % 2 * interval '1 month 3 s', gen_random_uuid(), n
               from generate_series(1, 7000) n"#,
        )
        .await
        .expect("table");
    harness.routes(&with_snapshot(&harness));
    let relay = harness.streaming().await;
    assert_eq!(done(&harness, "items").await["rows"], 7000);
    let events = kafka::read(&harness.topic());
    assert_eq!(events.len(), 7000);
    assert_eq!(versions(&events).len(), 7000);
    drop(relay);
}

#[tokio::test]
async fn a_table_without_a_primary_key_is_refused_before_anything_is_emitted() {
    let mut harness = filled("keyless", 10).await;
    // Its updates can be published all the same.
    let keyless = "alter table items drop constraint items_pkey; alter table items replica identity full";
    harness.sql.batch_execute(keyless).await.expect("drop");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(
        report.contains("no published primary key") && report.contains("cdc-relay resnapshot"),
        "{report}"
    );
    drop(relay);
}

#[tokio::test]
async fn only_published_rows_and_columns_are_emitted() {
    let mut harness = filled("filtered", 100).await;
    let publish = "alter publication events set table items (owner, id, version, kind, note, at, amount) where (id > 90)";
    harness.sql.batch_execute(publish).await.expect("publication");
    // A row that leaves the filter arrives as a delete.
    harness
        .routes(&with_snapshot(&harness).replace("type = \"item.", "deletes = \"ignore\"\ntype = \"item."));
    let relay = harness.streaming().await;
    assert_eq!(done(&harness, "items").await["rows"], 10);
    harness
        .sql
        .batch_execute("insert into items (owner, id, version) values ('new', 200, 1)")
        .await
        .expect("row");
    let events = kafka::distinct(&harness.topic(), 11).await;
    let names = |event: &Event| -> Vec<String> {
        event.json().as_object().expect("an object").keys().cloned().collect()
    };
    let streamed = events.iter().find(|event| event.key == "new").expect("the streamed row");
    assert!(events.iter().all(|event| names(event) == names(streamed)));
    drop(relay);
}
