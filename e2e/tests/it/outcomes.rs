//! Whatever the gateway does, a payment ends as its charge did; and an outcome that is not known yet is told as
//! such, never as a failure.

use std::collections::BTreeSet;

use coroctl::topics;
use futures_util::future::join_all;
use jiff::Timestamp;
use saga::contract::{EventType, PAYMENT_TOPIC};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const AMOUNT: i64 = 400;

/// What the processor hears of the call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// The outcome.
    Outcome,
    /// Nothing it may believe: it inquires, and sends again what was not charged.
    Nothing,
}

/// The words of the gateway's script (`gateway-sim/src/script.rs`), what is heard and how the payment ends.
const WAYS: &[(&str, Heard, &str)] = &[
    ("approve", Heard::Outcome, "completed"),
    ("slow200", Heard::Outcome, "completed"),
    ("jitter100", Heard::Outcome, "completed"),
    ("tail20", Heard::Outcome, "completed"),
    ("lag2000", Heard::Outcome, "completed"),
    ("decline", Heard::Outcome, "failed"),
    ("decline200", Heard::Outcome, "failed"),
    ("decline-slow200", Heard::Outcome, "failed"),
    ("hang", Heard::Nothing, "completed"),
    ("reset", Heard::Nothing, "completed"),
    ("resetx2", Heard::Nothing, "completed"),
    ("http500", Heard::Nothing, "completed"),
    ("http502", Heard::Nothing, "completed"),
    ("http429", Heard::Nothing, "completed"),
    ("http409", Heard::Nothing, "completed"),
    ("garbage", Heard::Nothing, "completed"),
    ("cut", Heard::Nothing, "completed"),
    ("thenhang", Heard::Nothing, "completed"),
    ("thenreset", Heard::Nothing, "completed"),
    ("thenhttp500", Heard::Nothing, "completed"),
    ("thenhttp502", Heard::Nothing, "completed"),
    ("thenhttp429", Heard::Nothing, "completed"),
    ("thenhttp409", Heard::Nothing, "completed"),
    ("thengarbage", Heard::Nothing, "completed"),
    ("thencut", Heard::Nothing, "completed"),
    ("thenhttp500-lag2000", Heard::Nothing, "completed"),
    ("late2000", Heard::Nothing, "completed"),
    ("soft2000", Heard::Nothing, "completed"),
    ("thenhttp500-hooklate200", Heard::Nothing, "completed"),
    ("thenhttp500-hookx3", Heard::Nothing, "completed"),
    ("thenhttp500-hooklost", Heard::Nothing, "completed"),
    ("thenhttp500-hookbad", Heard::Nothing, "completed"),
    ("namelessno", Heard::Nothing, "completed"),
    ("thennamelessno", Heard::Nothing, "completed"),
    ("thennamelessbad", Heard::Nothing, "completed"),
    ("thenstrayno", Heard::Nothing, "completed"),
    ("thenamountno", Heard::Nothing, "completed"),
    ("thencached", Heard::Nothing, "completed"),
    ("thenpage402", Heard::Nothing, "completed"),
    ("thenpage404", Heard::Nothing, "completed"),
    ("thenhttp500-asknamelessno", Heard::Nothing, "completed"),
    ("decline-thennamelessok", Heard::Nothing, "failed"),
    ("decline-thenhttp500-askstrayok", Heard::Nothing, "failed"),
    ("decline-hang", Heard::Nothing, "failed"),
    ("decline-http500", Heard::Nothing, "failed"),
    ("decline-thenhang", Heard::Nothing, "failed"),
    ("decline-thenreset", Heard::Nothing, "failed"),
    ("decline-late2000", Heard::Nothing, "failed"),
    ("decline-soft2000", Heard::Nothing, "failed"),
];

/// The ids of payments whose outcome was told to be unknown.
async fn told_unknown(harness: &Harness, since: Timestamp) -> BTreeSet<String> {
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || topics::read(&brokers, &[PAYMENT_TOPIC], since).unwrap();
    let events = tokio::task::spawn_blocking(read).await.unwrap();
    let unknown = EventType::PaymentOutcomeUnknown.as_str();
    let of = events.iter().filter(|event| event.event_type() == unknown);
    of.map(|event| event.subject().to_owned()).collect()
}

/// Pays in this way; answers the payment as it ended.
async fn end_of(harness: &Harness, words: &str) -> (Uuid, Value) {
    let user = harness.client.user_with(1_000).await.unwrap();
    (user, harness.settle(user, &format!("5551234-{words}"), AMOUNT).await)
}

#[tokio::test]
async fn whatever_the_gateway_does_a_payment_ends_as_its_charge_did() {
    let harness = Harness::shared().await;
    let since = Timestamp::now();
    let ends = join_all(WAYS.iter().map(|(words, _, _)| end_of(&harness, words))).await;
    let unknown = told_unknown(&harness, since).await;
    for ((words, heard, end), (user, payment)) in WAYS.iter().zip(&ends) {
        assert_eq!(payment["status"], *end, "{words}: {payment}");
        let id = payment["payment_id"].as_str().unwrap();
        assert_eq!(unknown.contains(id), *heard == Heard::Nothing, "{words}: told to be unknown; {payment}");
        let left = harness.client.balance(*user).await.unwrap();
        let charge = harness.client.gateway_charge(id.parse().unwrap()).await.unwrap().unwrap();
        if *end == "completed" {
            assert_eq!((&payment["reason"], left), (&Value::Null, (1_000 - AMOUNT, 0)), "{words}");
            assert_eq!((&charge["status"], charge["amount"].as_i64()), (&"succeeded".into(), Some(AMOUNT)));
        } else {
            assert_eq!(
                (&payment["reason"], left),
                (&"declined:declined_by_issuer".into(), (1_000, 0)),
                "{words}"
            );
            assert_eq!(charge["status"], "declined", "{words}");
        }
    }
}

/// Whom the gateway declines is drawn by its seed.
#[tokio::test]
async fn where_the_gateway_draws_lots_each_payment_ends_as_it_drew() {
    let harness = Harness::shared().await;
    let ends = join_all((0..20).map(|_| end_of(&harness, "mix50-jitter50"))).await;
    for (user, payment) in &ends {
        let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
        let charge = harness.client.gateway_charge(id).await.unwrap().unwrap();
        let left = harness.client.balance(*user).await.unwrap();
        match charge["status"].as_str() {
            Some("succeeded") => assert_eq!((&payment["status"], left), (&"completed".into(), (600, 0))),
            Some("declined") => assert_eq!((&payment["status"], left), (&"failed".into(), (1_000, 0))),
            status => panic!("{status:?}"),
        }
    }
}

/// The payment is seen between the two: authorized, its money held, the reason said.
#[tokio::test]
async fn while_the_outcome_is_unknown_the_hold_stays() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    // Charged, and not found for as long as the gateway's promise allows.
    let payment_id = harness.client.pay(user, "5551234-thenhttp500-lag4500", AMOUNT).await.unwrap();
    let payment = harness.until(user, payment_id, |payment| !payment["reason"].is_null()).await;
    assert_eq!((&payment["status"], &payment["reason"]), (&"authorized".into(), &"http_500".into()));
    assert_eq!(payment["version"], 3);
    assert_eq!(harness.client.balance(user).await.unwrap(), (600, 400));
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!((&payment["status"], &payment["reason"]), (&"completed".into(), &Value::Null));
    assert_eq!(payment["version"], 4);
    assert_eq!(harness.client.balance(user).await.unwrap(), (600, 0));
}
