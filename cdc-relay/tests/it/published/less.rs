//! Tests every change that makes a publication send less of a table.

use super::{ids, refused_in_time, resnapshot, run, version};
use crate::harness::{Harness, SCHEMA};

/// Version of the server, a change that makes the publication send less, its repair, and the words of the refusal: either of two.
const LESS: [(i32, &str, &str, &str); 13] = [
    (
        14,
        "alter publication events drop table items",
        "alter publication events add table items",
        "not published any more",
    ),
    (
        14,
        "drop publication events",
        "create publication events for table items with (publish = 'insert, update')",
        "was dropped|does not exist",
    ),
    (
        14,
        "drop publication events; create publication events for table items with (publish = 'insert, update')",
        "",
        "made again",
    ),
    (
        14,
        "alter publication events set (publish = 'insert')",
        "alter publication events set (publish = 'insert, update')",
        "updates any more",
    ),
    (
        14,
        "alter publication events set (publish = ''); alter publication events set (publish = 'insert, update')",
        "",
        "more than once",
    ),
    (
        14,
        "alter table items rename to others",
        "alter table others rename to items",
        "not published any more",
    ),
    (14, "drop table items; {items}; alter publication events add table items", "", "made again"),
    (
        14,
        "create table spare (id int primary key); alter publication events set table spare",
        "alter publication events set table items; drop table spare",
        "not published any more",
    ),
    (
        14,
        "alter table items rename column note to remark",
        "alter table items rename column remark to note",
        "note",
    ),
    (
        15,
        "alter publication events set table items where (id > 5)",
        "alter publication events set table items",
        "filter",
    ),
    (
        15,
        "alter publication events set table items (owner, id, version, kind, note, at, amount)",
        "alter publication events set table items",
        "list of columns",
    ),
    (15, "alter publication events set tables in schema public", "", "taken out of the publication"),
    (
        14,
        "alter publication events rename to others",
        "alter publication others rename to events",
        "was dropped|does not exist",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_makes_a_table_send_less_is_refused_within_seconds() {
    let mut harness = Harness::new("less").await;
    let version = version(&harness).await;
    let relay = harness.streaming().await;
    let (items, _) = SCHEMA.split_once(';').expect("the table");
    for (since, change, back, says) in LESS {
        if version < since {
            continue;
        }
        harness.row("a", 1, 1, "made").await;
        harness.confirmed().await;
        // The watch has begun: until then the check at the start would refuse, in other words.
        harness.publication_checked().await;
        run(&harness, &change.replace("{items}", items)).await;
        let report = refused_in_time(&relay, change).await;
        // Of a publication that is gone the watch knows, or the session: whoever is first.
        assert!(says.split('|').any(|words| report.contains(words)), "{change}: {report}");
        run(&harness, &back.replace("{items}", items)).await;
        // Missing columns need no resnapshot.
        if says != "note" {
            resnapshot(&harness);
        }
        relay.streams().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_while_no_relay_ran_is_noticed_at_the_start() {
    for change in [
        "alter publication events drop table items; insert into items (owner, id, version) values ('lost', 1, 1);
         alter publication events add table items",
        "alter publication events set (publish = 'update'); insert into items (owner, id, version) values ('lost', 1, 1);
         alter publication events set (publish = 'insert, update')",
    ] {
        let mut harness = crate::refusals::used("away").await;
        run(&harness, change).await;
        let relay = harness.start();
        let report = relay.state("refused").await;
        assert!(report.contains("may not have been sent"), "{report}");
        harness.row("a", 2, 1, "made").await;
        assert_eq!(ids(&harness), ["it/items/a/1/1"]);
        resnapshot(&harness);
        relay.streams().await;
        assert!(ids(&harness).contains(&"it/items/lost/1/1".to_owned()));
    }
}
