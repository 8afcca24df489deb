//! Tests records of a topic that is listed as compacted: they are waited for as all others, and are no links of the chain.

use crate::harness::{Harness, Relay};
use crate::kafka::{self, chain, distinct};
use crate::release::{cdc_relay, text};

/// Rows of kind `made` lead to the usual topic, those of kind `latest` to a compacted one, those of kind `both` to both.
async fn harness(test: &str) -> Harness {
    let harness = Harness::new(test).await;
    let name = &harness.name;
    let routes = harness
        .default_routes()
        .replace("partitions = 2\n", &format!("partitions = 2\n\n[[topics]]\nname = \"{name}.latest\"\npartitions = 1\nconfig = {{ \"cleanup.policy\" = \"compact\" }}\n"))
        .replace("type = \"item.{kind}.v1\"\n", &format!("type = \"item.{{kind}}.v1\"\nwhen = {{ kind = [\"made\", \"both\"] }}\n\n[[sources.tables.routes]]\ntopic = \"{name}.latest\"\ntype = \"item.latest.v1\"\nwhen = {{ kind = [\"latest\", \"both\"] }}\n"));
    harness.routes(&routes);
    harness
}

fn latest(harness: &Harness) -> String {
    format!("{}.latest", harness.name)
}

/// Emits ten transactions of each kind, and kills the relay among them.
async fn emitted_by_two_relays(harness: &mut Harness) -> Relay {
    let mut relay = harness.streaming().await;
    for id in 0..30 {
        harness.row("o", id, 1, ["made", "latest", "both"][id as usize % 3]).await;
        if id == 15 {
            relay.kill();
            relay = harness.streaming().await;
        }
    }
    distinct(&harness.topic(), 20).await;
    distinct(&latest(harness), 20).await;
    harness.confirmed().await;
    relay
}

#[tokio::test]
async fn its_records_have_no_position_and_the_chain_of_the_others_is_whole() {
    let mut harness = harness("compacted").await;
    let relay = emitted_by_two_relays(&mut harness).await;
    assert_eq!(chain(&kafka::read(&harness.topic())), 20, "transactions with a record that stays");
    let records = kafka::read(&latest(&harness));
    assert!(records.iter().all(|record| record.header("pg_position").is_empty()), "{records:?}");
    drop(relay);
    let output = harness.command("verify").output().expect("verify");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("{} is compacted", latest(&harness))), "{said}");
    let output = harness.command("verify").arg("--json").output().expect("verify");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = &report["chains"][0];
    assert_eq!((&found["transactions"], &found["re_emitted"]), (&20.into(), &0.into()), "{report:#}");
}

#[tokio::test]
async fn an_older_row_is_not_replayed_over_a_newer_one() {
    let mut harness = harness("compacted_replay").await;
    let _relay = emitted_by_two_relays(&mut harness).await;
    let before = kafka::read(&latest(&harness)).len();
    let output = cdc_relay(&harness, &["replay", "--table", "items", "--key", "o", "--yes"]);
    let said = text(&output);
    assert_ne!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("compacted") && said.contains("resnapshot"), "{said}");
    assert_eq!(kafka::read(&latest(&harness)).len(), before, "nothing was emitted");
}
