//! Clients at the edge do not notice that instances of payments-svc come and go, nor events that the relay does.

use std::time::Duration;

use coroctl::client::Client;
use e2e::drill::arrivals::{LONGEST_MAX, Reader};
use e2e::drill::script;
use e2e::steady_load::{Paid, SteadyLoad, accepted};
use futures_util::future::join_all;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, get};

const INSTANCES: [&str; 2] = ["payments-svc", "payments-svc-2"];
const USERS: usize = 20;
/// Each is a payment and a poll of it: a hundred requests a second.
const EVERY: Duration = Duration::from_millis(20);
/// Requests that the edge may send again where a busy machine makes it notice late that an instance leaves: less than a fifth of a
/// second of the load. It needs half a second to notice at best, so an instance that leaves at once costs far more.
const RESENT_MAX: f64 = 10.0;

/// How often the edge had to send a request again, to the same instance or to another.
async fn resent(harness: &Harness) -> f64 {
    let url = format!("{}/metrics", harness.stack.edge_admin_url);
    let text = get(url).await.unwrap().text().await.unwrap();
    let counters = ["haproxy_server_retry_warnings_total{", "haproxy_server_redispatch_warnings_total{"];
    let lines: Vec<&str> =
        text.lines().filter(|line| counters.iter().any(|counter| line.starts_with(counter))).collect();
    assert!(!lines.is_empty(), "the edge does not count any more");
    lines.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// A load through the edge while `disturbance` goes on: what was accepted. No request may fail.
async fn load_during(harness: &Harness, client: &Client, disturbance: impl Future<Output = ()>) -> Vec<Paid> {
    let users: Vec<Uuid> = join_all((0..USERS).map(|_| harness.client.user_with(1_000_000)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let load = SteadyLoad::new(client.clone(), users, &harness.stack.demo_service_id, EVERY);
    let disturb = async {
        reached(&load, 50).await;
        disturbance.await;
        reached(&load, load.accepted_count() + 50).await;
        load.stop();
    };
    tokio::join!(load.run(), disturb);
    assert_eq!(load.failed(), [""; 0]);
    load.accepted()
}

async fn reached(load: &SteadyLoad, count: usize) {
    let enough = async {
        while load.accepted_count() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, enough).await.expect("nothing is accepted any more");
}

#[tokio::test]
async fn no_request_fails_during_a_rolling_restart() {
    let harness = Harness::alone().await;
    let client = Client::new(&harness.stack.through_edge()).unwrap();
    let before = resent(&harness).await;
    let restarts = async {
        for instance in INSTANCES {
            harness.cargo_stack("restart", instance).await;
        }
    };
    let payments = load_during(&harness, &client, restarts).await;
    // An instance that leaves is asked nothing any more: the edge has next to nothing to mend.
    let resent = resent(&harness).await - before;
    assert!(resent <= RESENT_MAX, "{resent} requests were sent again");
    harness.all_complete(payments.iter().map(Paid::ids)).await;
}

#[tokio::test]
async fn no_event_waits_for_a_start_while_a_relay_is_replaced_beside_another() {
    let harness = Harness::alone().await;
    let client = Client::new(&harness.stack.through_edge()).unwrap();
    let reader = Reader::begin(&harness.stack).await.unwrap();
    let replaced = async {
        script::cargo_stack(&["restart", "cdc-relay", "--beside"]).await.unwrap();
    };
    let payments = load_during(&harness, &client, replaced).await;
    harness.all_complete(payments.iter().map(Paid::ids)).await;
    let arrivals = reader.end().await.unwrap();
    // Initiated, authorized, completed; held, captured; succeeded.
    let (events, wanted) = (arrivals.events, 6 * payments.len());
    assert!(events >= wanted, "{events} events came, not {wanted}");
    assert!(arrivals.longest < LONGEST_MAX, "{:?}", arrivals.longest);
    let log = format!("{}/logs/cdc-relay-beside.log", harness.stack.dir);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("standing by"), "it did not wait for the slots:\n{log}");
    let status = script::cargo_stack(&["status"]).await.unwrap();
    assert!(!status.contains("cdc-relay-beside"), "it is gone afterwards:\n{status}");
}

#[tokio::test]
async fn what_a_killed_instance_took_is_answered_by_the_other_one() {
    let harness = Harness::alone().await;
    let client = Client::new(&harness.stack.through_edge()).unwrap();
    let payments =
        load_during(&harness, &client, async { harness.cargo_stack("kill", INSTANCES[0]).await }).await;
    // A repeated request is answered with the same payment.
    for paid in &payments {
        assert_eq!(accepted(&client, paid.user_id, &paid.body).await, Ok(paid.payment_id));
    }
    harness.all_complete(payments.iter().map(Paid::ids)).await;
}
