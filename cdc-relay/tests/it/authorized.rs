//! Tests a relay whose Kafka user may not write.
//!
//! * The relay says so and tries again.
//! * It loses nothing until it may write.

use stack::layout::Layout;
use stack::servers::kafka::acl::{Operation, Resource, Rule, allow};
use stack::servers::kafka::client_file;

use crate::harness::{Harness, Relay, eventually};
use crate::kafka::{chain, distinct};

/// A user who may only read, until a test allows more on topics of its own.
const USER: &str = "payments-svc";

async fn says(relay: &Relay, what: &str) {
    eventually(what, || async { relay.get("/health").filter(|report| report.contains(what)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_may_not_write_says_so_and_emits_everything_once_it_may() {
    let layout = Layout::from_env().expect("the stack");
    let mut harness = Harness::new("authorized").await;
    harness.overrides.push(("KAFKA_CONFIG", client_file(&layout, USER).display().to_string()));
    let (items, state, dead) =
        (harness.topic(), format!("{}.state", harness.name), harness.dead_letter_topic());
    let give = |operation: Operation, topics: &[&str]| {
        let rule = |name| Rule { principal: USER, operation, resource: Resource::Topic, name };
        allow(&layout, &topics.iter().copied().map(rule).collect::<Vec<_>>()).expect("rules");
    };

    let relay = harness.start();
    says(&relay, "is missing, and this relay may not create it").await;
    let doctor = harness.command("doctor").output().expect("doctor");
    let report = String::from_utf8_lossy(&doctor.stdout);
    assert_eq!(doctor.status.code(), Some(1), "{report}");
    assert!(report.contains("this principal may not create it"), "{report}");
    give(Operation::Create, &[&items, &state, &dead]);
    says(&relay, "may not write").await;
    give(Operation::Write, &[&state, &dead]);
    relay.streams().await;
    for id in 1..=20 {
        harness.row("a", id, 1, "made").await;
    }
    says(&relay, &format!("this relay may not write to topic {items}")).await;
    let (before, confirmed) = harness.positions().await;
    assert!(
        confirmed.is_some_and(|confirmed| confirmed < before),
        "the slot is confirmed past rows that Kafka did not take"
    );
    give(Operation::Write, &[&items]);
    let events = distinct(&items, 20).await;
    assert!(chain(&events) >= 20, "{events:#?}");
    harness.confirmed().await;
    assert!(!relay.log().contains("password"), "{}", relay.log());
    drop(relay);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_before_anything_is_opened() {
    let mut harness = Harness::new("sign_in").await;
    let file = std::env::temp_dir().join(&harness.name).join("kafka.properties");
    std::fs::write(&file, "# ours\nsasl.pasword=hunter2\n").expect("the file");
    harness.overrides.push(("KAFKA_CONFIG", file.display().to_string()));
    for command in ["run", "doctor", "status", "verify"] {
        let output = harness.command(command).output().expect("the program");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{command}: {stderr}");
        assert!(
            stderr.contains("line 2") && stderr.contains("no property `sasl.pasword`"),
            "{command}: {stderr}"
        );
        assert!(!stderr.contains("hunter2"), "{command}: {stderr}");
    }
}
