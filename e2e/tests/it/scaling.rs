//! Clients at the edge do not notice that a service gets another number of instances, and no partition waits for one that went.

use std::time::Duration;

use e2e::drill::{scale, script};
use e2e::steady_load::{Paid, SteadyLoad};
use futures_util::future::join_all;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const USERS: usize = 20;
const EVERY: Duration = Duration::from_millis(40);

#[tokio::test]
async fn no_request_fails_while_instances_come_and_go_and_who_went_holds_no_partition() {
    let harness = Harness::alone().await;
    let client = coroctl::client::Client::new(&harness.stack.through_edge()).unwrap();
    let users: Vec<Uuid> = join_all((0..USERS).map(|_| harness.client.user_with(1_000_000)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let load = SteadyLoad::new(client, users, &harness.stack.demo_service_id, EVERY);
    let status = async || script::cargo_stack(&["status"]).await.unwrap();
    let members = async || scale::members(&harness.stack, "payments-svc").await.unwrap();
    // Kafka puts a random id behind the name, which may begin with a 3.
    let is_third = |member: &String| member.starts_with("payments-svc-3-");
    let scaled = async {
        script::cargo_stack(&["scale", "payments-svc", "3"]).await.unwrap();
        assert!(status().await.contains("payments-svc-3"), "it is one of the stack's");
        let joined = async {
            while !members().await.iter().any(is_third) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, joined).await.expect("it consumes nothing");
        // One that is there is restarted like any other.
        script::cargo_stack(&["restart", "payments-svc-3"]).await.unwrap();
        script::cargo_stack(&["scale", "payments-svc", "2"]).await.unwrap();
        let left = members().await;
        assert!(!left.iter().any(is_third), "{left:?}");
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(!status().await.contains("payments-svc-3"));
        load.stop();
    };
    tokio::join!(load.run(), scaled);
    assert_eq!(load.failed(), [""; 0]);
    harness.all_complete(load.accepted().iter().map(Paid::ids)).await;
}

#[tokio::test]
async fn what_cannot_be_scaled_is_refused_and_changes_nothing() {
    let harness = Harness::shared().await;
    let kept = format!("{}/scale", harness.stack.dir);
    let before = std::fs::read_to_string(&kept).ok();
    for (name, number, reason) in [
        ("payments-svc", "0", "nobody would do the work"),
        ("payments-svc", "9", "from 1 to 8"),
        ("cdc-relay", "2", "has one instance"),
        ("payments-svc-2", "2", "has one instance"),
        ("postgres", "2", "none of ours"),
    ] {
        let error = format!("{:#}", script::cargo_stack(&["scale", name, number]).await.unwrap_err());
        assert!(error.contains(reason), "{name} {number}: {error}");
    }
    assert_eq!(std::fs::read_to_string(&kept).ok(), before);
}
