//! Tests deletes and old rows: each is emitted as the routes say, or becomes a dead letter.

use crate::harness::{Harness, eventually};
use crate::kafka::{distinct, read};
use crate::types::shortest;

const ORDERS: &str = "
    create table orders (id bigint primary key, status text not null, note text);
    alter table orders replica identity full;";

#[tokio::test]
async fn deletes_and_old_rows_are_emitted_and_counted() {
    let mut harness = Harness::bare("deletes").await;
    harness.sql.batch_execute(ORDERS).await.expect("table");
    harness.routes(&shortest(
        &harness,
        "{ name = \"orders\", id = \"o/{id}/{status}\", deletes = \"both\", before = true }",
    ));
    let relay = harness.streaming().await;
    for transaction in [
        "insert into orders values (1, 'new')",
        "update orders set status = 'paid'",
        "update orders set id = 2",
        "delete from orders; insert into orders values (2, 'again')",
    ] {
        harness.sql.batch_execute(transaction).await.expect("changes");
    }
    let topic = format!("{}.orders", harness.name);
    let events = distinct(&topic, 8).await;
    let mut emitted: Vec<(&str, &str, &str, &str)> = events
        .iter()
        .map(|event| {
            (event.key.as_str(), event.header("ce_id"), event.header("ce_type"), event.value.as_str())
        })
        .collect();
    let paid = r#"{"id":1,"status":"paid","note":null}"#;
    let moved = r#"{"id":2,"status":"paid","note":null}"#;
    let expected = [
        ("1", "o/1/new", "orders.insert", r#"{"id":1,"status":"new","note":null,"before":null}"#.to_owned()),
        (
            "1",
            "o/1/paid",
            "orders.update",
            format!("{},\"before\":{{\"id\":1,\"status\":\"new\",\"note\":null}}}}", &paid[..paid.len() - 1]),
        ),
        ("1", "o/1/paid/delete", "orders.delete", format!("{{\"before\":{paid}}}")),
        ("1", "o/1/paid/tombstone", "orders.delete", String::new()),
        ("2", "o/2/paid", "orders.update", format!("{},\"before\":{paid}}}", &moved[..moved.len() - 1])),
        ("2", "o/2/paid/delete", "orders.delete", format!("{{\"before\":{moved}}}")),
        ("2", "o/2/paid/tombstone", "orders.delete", String::new()),
        (
            "2",
            "o/2/again",
            "orders.insert",
            r#"{"id":2,"status":"again","note":null,"before":null}"#.to_owned(),
        ),
    ];
    let mut expected: Vec<(&str, &str, &str, &str)> =
        expected.iter().map(|(a, b, c, d)| (*a, *b, *c, d.as_str())).collect();
    emitted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(emitted, expected);
    // Deletes are part of the chain, and of what is confirmed.
    assert_eq!(crate::kafka::chain(&events), 4);
    harness.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn a_delete_that_cannot_be_emitted_becomes_a_dead_letter_with_the_known_columns() {
    let mut harness = Harness::bare("undeleted").await;
    harness
        .sql
        .batch_execute("create table orders (id bigint primary key, status text)")
        .await
        .expect("table");
    harness
        .sql
        .batch_execute("create publication events for table orders with (publish = 'insert, update, delete')")
        .await
        .expect("publication");
    let routes = shortest(
        &harness,
        "{ name = \"orders\", type = \"order.{@op}\", id = \"{id}/{status}\", deletes = \"event\" }",
    )
    .replace("tables =", "publication = \"events\"\ntables =")
    .replace("[relay]", "[relay]\nmax_record_bytes = 500");
    harness.routes(&routes);
    let relay = harness.streaming().await;
    let large = "insert into orders values (1, repeat('x', 400)); delete from orders; insert into orders values (2, 'x')";
    harness.sql.batch_execute(large).await.expect("rows");
    let dead = eventually("two dead letters", || async {
        let dead_letters = read(&harness.dead_letter_topic());
        (dead_letters.len() >= 2)
            .then(|| dead_letters.iter().map(crate::kafka::Event::json).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(dead[0]["op"], "insert");
    // The delete follows the row of its key that could not be emitted.
    assert_eq!((&dead[1]["op"], &dead[1]["key"]), (&"delete".into(), &"1".into()));
    assert_eq!(dead[1]["row"], serde_json::json!({"id": "1"}));
    assert!(dead[1]["reason"].as_str().is_some_and(|reason| reason.contains("follows")), "{}", dead[1]);
    let topic = format!("{}.orders", harness.name);
    assert_eq!(distinct(&topic, 1).await[0].key, "2");
    harness.confirmed().await;
    // With room for the row, the key goes on: the row, then its end.
    relay.stop().await;
    harness.routes(&routes.replace("max_record_bytes = 500", ""));
    let relay = harness.streaming().await;
    let released = harness.command("release").arg("--all").output().expect("the program");
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    let of_the_key: Vec<String> = distinct(&topic, 3)
        .await
        .iter()
        .filter(|event| event.key == "1")
        .map(|event| event.header("ce_type").to_owned())
        .collect();
    assert_eq!(of_the_key, ["order.insert", "order.delete"]);
    drop(relay);
}

#[tokio::test]
async fn deletes_that_nobody_said_anything_about_are_refused_before_streaming() {
    let mut harness = Harness::new("unsaid").await;
    harness
        .sql
        .batch_execute("alter publication events set (publish = 'insert, update, delete')")
        .await
        .expect("alter");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("publishes deletes or truncates, which the relay does not emit"), "{report}");
    assert!(report.contains("set `deletes` in the routes of public.items"), "{report}");
    drop(relay);
    // With `deletes` or `op` on every route the source streams, and then the publication has to publish deletes.
    let routes = harness
        .default_routes()
        .replace("type = \"item.{kind}.v1\"", "type = \"item.{@op}.v1\"\ndeletes = \"event\"")
        .replace("type = \"item.work.v1\"", "type = \"item.work.v1\"\nop = [\"insert\", \"update\"]");
    harness.routes(&routes);
    let relay = harness.streaming().await;
    relay.kill();
    harness
        .sql
        .batch_execute("alter publication events set (publish = 'insert, update')")
        .await
        .expect("alter");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("does not publish"), "{report}");
    drop(relay);
}
