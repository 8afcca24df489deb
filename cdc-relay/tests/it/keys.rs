//! One key per row, everywhere: in the stream, in queries, in tombstones and on the terminal.

use serde_json::{Value, json};

use crate::commands::Tail;
use crate::harm::{five_lines, run};
use crate::kafka::distinct;
use crate::rig::Rig;

/// The columns that an index only includes are payload.
#[tokio::test]
async fn columns_that_a_primary_key_includes_are_no_part_of_the_key() {
    for identity in ["default", "full"] {
        let mut rig = Rig::bare("included").await;
        run(&rig, "create table t (id int, payload text, primary key (id) include (payload))").await;
        run(&rig, &format!("insert into t values (0, 'z'); alter table t replica identity {identity}")).await;
        rig.routes(&five_lines(&rig, "{ name = \"t\", deletes = \"tombstone\", snapshot = true }"));
        let relay = rig.streaming().await;
        let mut tail = Tail::start(&rig, &["--json", "--limit", "3"]);
        run(&rig, "insert into t values (1, 'a')").await;
        run(&rig, "update t set payload = 'b' where id = 1").await;
        run(&rig, "delete from t where id = 1").await;
        let events = distinct(&format!("{}.t", rig.name), 4).await;
        let of = |key: &str| events.iter().filter(|event| event.key == key).count();
        assert_eq!((of("0"), of("1")), (1, 3), "{identity}: {events:#?}");
        for _ in 0..3 {
            let line: Value = serde_json::from_str(&tail.line()).expect("an object");
            assert_eq!(line["key"], json!({"id": 1}), "{identity}: {line}");
        }
        drop(relay);
    }
}

/// Of a deleted row the log has the key, which an included column is not.
#[tokio::test]
async fn a_route_that_needs_an_included_column_of_a_deleted_row_is_refused() {
    let mut rig = Rig::bare("includedroute").await;
    run(&rig, "create table t (id int, payload text, primary key (id) include (payload))").await;
    rig.routes(&five_lines(&rig, "{ name = \"t\", key = \"{payload}\", deletes = \"tombstone\" }"));
    let relay = rig.start();
    let report = relay.state("refused").await;
    assert!(report.contains("column payload of a deleted row of public.t is not in the log"), "{report}");
    // Doctor says the same of a publication that is there.
    run(&rig, "create publication p for table t with (publish = 'insert, update, delete')").await;
    let routes = five_lines(&rig, "{ name = \"t\", key = \"{payload}\", deletes = \"tombstone\" }");
    rig.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let output = rig.command("doctor").output().expect("doctor");
    let out = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("column payload of a deleted row of public.t is not in the log"), "{out}");
}
