//! Tests changes of the columns that identify a row while a relay streams its table.
//!
//! * The stream names a row as queries do, before and after.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::commands::Tail;
use crate::harm::{five_lines, run};
use crate::harness::{Harness, Relay, eventually};
use crate::kafka::{self, distinct};
use crate::proxy::Gate;

/// Time for two checks of the watch and a new session, on a busy machine.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

struct Case {
    name: &'static str,
    /// Columns are `id`, `code` and `v`; the table is `t`.
    tables: &'static str,
    change: &'static str,
    /// The key of a row with id 2 and code `b`.
    key: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "another primary key under identity full",
        tables: "create table t (id int primary key, code text not null unique, v int); alter table t replica identity full",
        change: "alter table t drop constraint t_pkey, add primary key (code)",
        key: "b",
    },
    Case {
        name: "the columns of the primary key in another order, under identity full",
        tables: "create table t (id int, code text, v int, primary key (id, code)); alter table t replica identity full",
        change: "alter table t drop constraint t_pkey, add primary key (code, id)",
        key: "",
    },
    Case {
        name: "identity full instead of an index",
        tables: "create table t (id int primary key, code text not null, v int); create unique index u on t (code);
                 alter table t replica identity using index u",
        change: "alter table t replica identity full",
        key: "2",
    },
    Case {
        name: "an index instead of identity full",
        tables: "create table t (id int primary key, code text not null, v int); create unique index u on t (code);
                 alter table t replica identity full",
        change: "alter table t replica identity using index u",
        key: "b",
    },
    Case {
        name: "another index",
        tables: "create table t (id int not null unique, code text not null unique, v int);
                 alter table t replica identity using index t_id_key",
        change: "alter table t replica identity using index t_code_key",
        key: "b",
    },
    Case {
        name: "a key column with another name",
        tables: "create table t (ident int primary key, id int, code text, v int); alter table t replica identity full",
        change: "alter table t rename ident to other",
        key: "2",
    },
    // The stream announces the root, and does not announce it again.
    Case {
        name: "an index of the root alone",
        tables: "create table t (id int not null, code text not null, v int, primary key (id)) partition by range (id);
                 create table t_1 partition of t for values from (0) to (100);
                 alter table t_1 replica identity full; create unique index u on t (code, id)",
        change: "alter table t replica identity using index u",
        key: "",
    },
];

/// Each row is emitted twice: by the stream, and by a replay.
fn keys(harness: &Harness, topic: &str) -> Vec<String> {
    let relayed = harness.command("replay").args(["--table", "t", "--where", "code = 'b'", "--yes"]).output();
    let relayed = relayed.expect("replay");
    assert_eq!(relayed.status.code(), Some(0), "{}", String::from_utf8_lossy(&relayed.stderr));
    let events = kafka::read(topic);
    let of_the_row = events.iter().filter(|event| !event.value.is_empty() && event.json()["code"] == "b");
    of_the_row.map(|event| event.key.clone()).collect()
}

/// Waits for a session that began after the change.
async fn noticed(relay: &Relay, what: &str) {
    let began = Instant::now();
    while relay.metric("cdc_relay_sessions_total") < 2.0 {
        assert!(began.elapsed() < SESSION_TIMEOUT, "{what}: {:?}\n{}", relay.get("/health"), relay.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.streams().await;
}

fn insert(id: i32, code: &str) -> String {
    format!("insert into t (id, code, v) values ({id}, '{code}', 1)")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_has_one_key_however_what_identifies_it_is_changed() {
    for case in CASES {
        let mut harness = Harness::bare("rekeyed").await;
        run(&harness, case.tables).await;
        let named = case.tables.contains("ident int");
        if named {
            run(&harness, "create sequence s; alter table t alter ident set default nextval('s')").await;
        }
        harness.routes(&five_lines(&harness, "{ name = \"t\", deletes = \"tombstone\", id = \"t/{code}\" }"));
        let relay = harness.streaming().await;
        let topic = format!("{}.t", harness.name);
        run(&harness, &insert(1, "a")).await;
        distinct(&topic, 1).await;
        run(&harness, case.change).await;
        noticed(&relay, case.name).await;
        let log = relay.log();
        assert!(log.contains("the key of public.t was changed from ("), "{}: {log}", case.name);
        run(&harness, &insert(2, "b")).await;
        harness.confirmed().await;
        let keys = keys(&harness, &topic);
        assert_eq!(keys.len(), 2, "{}: {keys:?}", case.name);
        assert_eq!(keys[0], keys[1], "{}", case.name);
        assert!(case.key.is_empty() || keys[0] == case.key, "{}: {keys:?}", case.name);
        assert_eq!(kafka::read(&harness.dead_letter_topic()).len(), 0, "{}", case.name);
        drop(relay);
    }
}

/// Where the stream announces the changed table, the relay does not wait for the watch.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_row_after_another_primary_key_is_named_by_it() {
    let mut harness = Harness::bare("rekeyed_first").await;
    run(&harness, CASES[0].tables).await;
    harness.routes(&five_lines(&harness, "{ name = \"t\", deletes = \"tombstone\" }"));
    let relay = harness.streaming().await;
    let tail = Tail::start(&harness, &["--json", "--limit", "2"]);
    run(&harness, &insert(1, "a")).await;
    let topic = format!("{}.t", harness.name);
    distinct(&topic, 1).await;
    let line: Value = serde_json::from_str(&tail.line()).expect("an object");
    assert_eq!(line["key"], serde_json::json!({"id": 1}), "{line}");
    run(&harness, &format!("{}; {}", CASES[0].change, insert(2, "b"))).await;
    let events = distinct(&topic, 2).await;
    assert_eq!(events.iter().map(|event| event.key.as_str()).collect::<Vec<_>>(), ["1", "b"]);
    let line: Value = serde_json::from_str(&tail.line()).expect("an object");
    assert_eq!(line["key"], serde_json::json!({"code": "b"}), "{line}");
    drop(relay);
}

/// The columns that name and order the rows stay, so that no session ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stays_the_same_ends_no_session() {
    let mut harness = Harness::bare("rekeyed_not").await;
    run(
        &harness,
        "create table t (id int primary key, code text not null, v int); alter table t replica identity full",
    )
    .await;
    harness.routes(&five_lines(&harness, "{ name = \"t\" }"));
    let relay = harness.streaming().await;
    let topic = format!("{}.t", harness.name);
    for (id, change) in [
        "alter table t drop constraint t_pkey, add primary key (id) include (code)",
        "alter table t replica identity default",
        "alter table t add column w int; create unique index on t (v, id)",
    ]
    .iter()
    .enumerate()
    {
        run(&harness, change).await;
        run(&harness, &insert(id as i32, "a")).await;
        harness.publication_checked().await;
        let events = distinct(&topic, id + 1).await;
        assert!(events.iter().any(|event| event.key == id.to_string()), "{change}: {events:#?}");
    }
    assert!(relay.metric("cdc_relay_sessions_total") < 2.0, "{}", relay.log());
}

/// A snapshot that went on would leave out the rows that the new type's order moves before the last key.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_begins_anew_where_the_keys_type_is_changed() {
    let mut harness = Harness::bare("rekeyed_type").await;
    run(&harness, "create table t (id int primary key, code text, v int)").await;
    run(&harness, "insert into t select n, 'c' || n, 1 from generate_series(1, 20000) n").await;
    harness.routes(&five_lines(&harness, "{ name = \"t\", snapshot = true }"));
    // The first chunk has 2000 rows. The query for the second one does not come to the server.
    let gate = Gate::to(harness.host(), "(id) > (").await;
    harness.overrides.push(("IT_URL", harness.url_by(gate.address)));
    let relay = harness.start();
    let state = format!("{}.state", harness.name);
    let position = || {
        let records = kafka::read(&state);
        records.into_iter().rfind(|event| event.key.ends_with("/snapshot/public.t")).map(|event| event.json())
    };
    eventually("a part of the snapshot", || async { position().filter(|at| at["rows"] != 0) }).await;
    gate.held().await;
    relay.kill();
    gate.open();
    run(&harness, "alter table t alter id type text").await;
    let relay = harness.streaming().await;
    eventually("the snapshot to be done", || async { position().filter(|at| at["done"] == true) }).await;
    harness.confirmed().await;
    let mut keys: Vec<String> =
        kafka::read(&format!("{}.t", harness.name)).into_iter().map(|event| event.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 20_000, "{}", relay.log());
}
