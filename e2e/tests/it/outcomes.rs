//! A payment ends as its charge did, whatever the gateway does; an outcome that is not known yet is published as
//! unknown, never as a failure.

use std::collections::BTreeSet;

use coroctl::topics;
use futures_util::future::join_all;
use jiff::Timestamp;
use saga::contract::{EventType, PAYMENT_TOPIC};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const AMOUNT: i64 = 400;

/// The first answer of the call to the processor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstAnswer {
    /// The outcome.
    Outcome,
    /// Nothing it may believe: it inquires, and sends again what was not charged.
    Nothing,
}

/// The gateway's script (`gateway-sim/src/script.rs`), the first answer, and the end of the payment.
const WAYS: &[(&str, FirstAnswer, &str)] = &[
    ("approve", FirstAnswer::Outcome, "completed"),
    ("slow200", FirstAnswer::Outcome, "completed"),
    ("jitter100", FirstAnswer::Outcome, "completed"),
    ("tail20", FirstAnswer::Outcome, "completed"),
    ("lag2000", FirstAnswer::Outcome, "completed"),
    ("decline", FirstAnswer::Outcome, "failed"),
    ("decline200", FirstAnswer::Outcome, "failed"),
    ("decline-slow200", FirstAnswer::Outcome, "failed"),
    ("hang", FirstAnswer::Nothing, "completed"),
    ("reset", FirstAnswer::Nothing, "completed"),
    ("resetx2", FirstAnswer::Nothing, "completed"),
    ("http500", FirstAnswer::Nothing, "completed"),
    ("http502", FirstAnswer::Nothing, "completed"),
    ("http429", FirstAnswer::Nothing, "completed"),
    ("http409", FirstAnswer::Nothing, "completed"),
    ("garbage", FirstAnswer::Nothing, "completed"),
    ("cut", FirstAnswer::Nothing, "completed"),
    ("thenhang", FirstAnswer::Nothing, "completed"),
    ("thenreset", FirstAnswer::Nothing, "completed"),
    ("thenhttp500", FirstAnswer::Nothing, "completed"),
    ("thenhttp502", FirstAnswer::Nothing, "completed"),
    ("thenhttp429", FirstAnswer::Nothing, "completed"),
    ("thenhttp409", FirstAnswer::Nothing, "completed"),
    ("thengarbage", FirstAnswer::Nothing, "completed"),
    ("thencut", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-lag2000", FirstAnswer::Nothing, "completed"),
    ("late2000", FirstAnswer::Nothing, "completed"),
    ("soft2000", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-hooklate200", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-hookx3", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-hooklost", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-hookbad", FirstAnswer::Nothing, "completed"),
    ("namelessno", FirstAnswer::Nothing, "completed"),
    ("thennamelessno", FirstAnswer::Nothing, "completed"),
    ("thennamelessbad", FirstAnswer::Nothing, "completed"),
    ("thenstrayno", FirstAnswer::Nothing, "completed"),
    ("thenamountno", FirstAnswer::Nothing, "completed"),
    ("thencached", FirstAnswer::Nothing, "completed"),
    ("thenpage402", FirstAnswer::Nothing, "completed"),
    ("thenpage404", FirstAnswer::Nothing, "completed"),
    ("thenhttp500-asknamelessno", FirstAnswer::Nothing, "completed"),
    ("decline-thennamelessok", FirstAnswer::Nothing, "failed"),
    ("decline-thenhttp500-askstrayok", FirstAnswer::Nothing, "failed"),
    ("decline-hang", FirstAnswer::Nothing, "failed"),
    ("decline-http500", FirstAnswer::Nothing, "failed"),
    ("decline-thenhang", FirstAnswer::Nothing, "failed"),
    ("decline-thenreset", FirstAnswer::Nothing, "failed"),
    ("decline-late2000", FirstAnswer::Nothing, "failed"),
    ("decline-soft2000", FirstAnswer::Nothing, "failed"),
];

/// The ids of payments whose outcome was published as unknown.
async fn published_as_unknown(harness: &Harness, since: Timestamp) -> BTreeSet<String> {
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || topics::read(&brokers, &[PAYMENT_TOPIC], since).unwrap();
    let events = tokio::task::spawn_blocking(read).await.unwrap();
    let unknown = EventType::PaymentOutcomeUnknown.as_str();
    let of = events.iter().filter(|event| event.event_type() == unknown);
    of.map(|event| event.subject().to_owned()).collect()
}

/// Pays in this way; returns the payment at its end.
async fn end_of(harness: &Harness, script: &str) -> (Uuid, Value) {
    let user = harness.client.user_with(1_000).await.unwrap();
    (user, harness.settle(user, &format!("5551234-{script}"), AMOUNT).await)
}

#[tokio::test]
async fn whatever_the_gateway_does_a_payment_ends_as_its_charge_did() {
    let harness = Harness::shared().await;
    let since = Timestamp::now();
    let ends = join_all(WAYS.iter().map(|(script, _, _)| end_of(&harness, script))).await;
    let unknown = published_as_unknown(&harness, since).await;
    for ((script, first_answer, end), (user, payment)) in WAYS.iter().zip(&ends) {
        assert_eq!(payment["status"], *end, "{script}: {payment}");
        let id = payment["payment_id"].as_str().unwrap();
        assert_eq!(
            unknown.contains(id),
            *first_answer == FirstAnswer::Nothing,
            "{script}: published as unknown; {payment}"
        );
        let left = harness.client.balance(*user).await.unwrap();
        let charge = harness.client.gateway_charge(id.parse().unwrap()).await.unwrap().unwrap();
        if *end == "completed" {
            assert_eq!((&payment["reason"], left), (&Value::Null, (1_000 - AMOUNT, 0)), "{script}");
            assert_eq!((&charge["status"], charge["amount"].as_i64()), (&"succeeded".into(), Some(AMOUNT)));
        } else {
            assert_eq!(
                (&payment["reason"], left),
                (&"declined:declined_by_issuer".into(), (1_000, 0)),
                "{script}"
            );
            assert_eq!(charge["status"], "declined", "{script}");
        }
    }
}

/// The gateway draws by its seed whom it declines.
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

/// The payment is visible between the two: authorized, with its money held and the reason.
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
