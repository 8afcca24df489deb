//! Events that contradict the ledger or themselves, produced for a whole balance-svc: each is parked, no money
//! moves, and the hold stays until a result comes that agrees with it.

use saga::contract::{PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

use crate::service::{AMOUNT, PublishedEvent, Service, event};

const SUCCEEDED: &str = "payment.result.succeeded.v1";
const DECLINED: &str = "payment.result.declined.v1";
const EXPIRED: &str = "payment.result.expired.v1";
const CANCELLED: &str = "payment.result.cancelled.v1";
const INITIATED: &str = "payment.initiated.v1";

/// The golden event of this type about this payment, with one text in its body replaced by another.
fn altered(
    topic: &'static str,
    kind: &'static str,
    (user, payment): (Uuid, Uuid),
    from: &str,
    to: &str,
) -> PublishedEvent {
    let (topic, kind, body) = event(topic, kind, user, payment);
    assert!(body.contains(from), "{kind} has no {from}");
    (topic, kind, body.replace(from, to))
}

/// A user with exactly the money for one payment, and the payment, whose money is held.
async fn held(service: &Service) -> (Uuid, Uuid) {
    let (user, payment) = (service.ledger.user_with(AMOUNT).await, Uuid::now_v7());
    service.produce(user, &event(PAYMENT_TOPIC, INITIATED, user, payment));
    service.until(&format!("select count(*) from ledger where payment_id = '{payment}'"), 1).await;
    assert_eq!(service.ledger.balance(user).await, (0, AMOUNT));
    (user, payment)
}

/// Beside the type.
type Headers<'a> = &'a [(&'a str, &'a str)];

async fn parked(service: &Service, count: i64) {
    service.until("select count(*) from parked where reason like 'differs: %'", count).await;
    assert_eq!(service.ledger.count("select count(*) from parked").await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_differs_from_its_hold_moves_no_money() {
    let service = Service::new().await;
    let mut published = 0;
    let amount = "\"amount\":15000";
    for (kind, from, to) in [
        (SUCCEEDED, amount, "\"amount\":1"),
        (SUCCEEDED, amount, "\"amount\":15001"),
        (SUCCEEDED, "electricity", "gas"),
        (DECLINED, amount, "\"amount\":1"),
        (DECLINED, "electricity", "gas"),
        (EXPIRED, amount, "\"amount\":14999"),
        (CANCELLED, "electricity", "gas"),
    ] {
        let (user, payment) = held(&service).await;
        service.produce(user, &altered(PAYMENT_RESULT_TOPIC, kind, (user, payment), from, to));
        published += 1;
        parked(&service, published).await;
        assert_eq!(service.ledger.balance(user).await, (0, AMOUNT), "{kind}, {to}");
        // The hold waits for a result that agrees with it.
        service.produce(user, &event(PAYMENT_RESULT_TOPIC, SUCCEEDED, user, payment));
        let captured =
            format!("select count(*) from ledger where kind = 'capture' and payment_id = '{payment}'");
        service.until(&captured, 1).await;
        // What differs is no duplicate either.
        service.produce(user, &altered(PAYMENT_RESULT_TOPIC, kind, (user, payment), from, to));
        published += 1;
        parked(&service, published).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_contradicts_itself_moves_no_money() {
    let service = Service::new().await;
    let (user, payment) = held(&service).await;
    let (own, stranger) = (user.to_string(), Uuid::now_v7().to_string());
    let said = |kind: &'static str, body_of: &'static str| -> PublishedEvent {
        let (topic, _, body) = event(PAYMENT_RESULT_TOPIC, body_of, user, payment);
        (topic, kind, body)
    };
    let misrouted = || event(PAYMENT_TOPIC, SUCCEEDED, user, payment);
    let without_reference =
        altered(PAYMENT_RESULT_TOPIC, SUCCEEDED, (user, payment), "\"gw-000001\"", "null");
    let result = || event(PAYMENT_RESULT_TOPIC, SUCCEEDED, user, payment);
    let id = format!("processor/charges/{}/2", Uuid::now_v7());
    let cases: [(&str, PublishedEvent, Headers<'_>); 9] = [
        (&own, said(SUCCEEDED, DECLINED), &[]),
        (&own, said(DECLINED, SUCCEEDED), &[]),
        (&own, said(CANCELLED, "payment.result.unknown.v1"), &[]),
        (&own, misrouted(), &[]),
        (&own, without_reference, &[]),
        (&stranger, result(), &[]),
        (&own, result(), &[("ce_source", "/coro/payments")]),
        (&own, result(), &[("ce_subject", &stranger)]),
        (&own, result(), &[("ce_id", &id)]),
    ];
    for ((key, published, headers), count) in cases.into_iter().zip(1..) {
        service.produce_with(key, &published, headers);
        parked(&service, count).await;
        assert_eq!(service.ledger.balance(user).await, (0, AMOUNT), "{published:?} {headers:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_repeated_with_another_content_is_set_aside_in_every_state() {
    let service = Service::new().await;
    let mut published = 0;
    for result in [None, Some(SUCCEEDED), Some(DECLINED)] {
        let (user, payment) = held(&service).await;
        if let Some(result) = result {
            service.produce(user, &event(PAYMENT_RESULT_TOPIC, result, user, payment));
            service.until(&format!("select count(*) from ledger where payment_id = '{payment}'"), 2).await;
        }
        for (from, to) in [("\"amount\":15000", "\"amount\":1"), ("electricity", "gas")] {
            service.produce(user, &altered(PAYMENT_TOPIC, INITIATED, (user, payment), from, to));
            published += 1;
            parked(&service, published).await;
        }
    }
    let (poor, payment) = (service.ledger.user_with(1).await, Uuid::now_v7());
    service.produce(poor, &event(PAYMENT_TOPIC, INITIATED, poor, payment));
    service.until("select count(*) from ledger where kind = 'rejection'", 1).await;
    service.produce(
        poor,
        &altered(PAYMENT_TOPIC, INITIATED, (poor, payment), "\"amount\":15000", "\"amount\":1"),
    );
    parked(&service, published + 1).await;
    service.stop().await;
}
