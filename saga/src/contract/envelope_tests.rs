//! Tests that an event is read only if all its parts agree.

use super::*;

const USER: &str = "0198c0de-0000-7000-8000-000000000001";
const PAYMENT: &str = "0198c0de-0000-7000-8000-000000000002";

fn golden(event: EventType) -> String {
    let path = format!("{}/golden/{}.json", env!("CARGO_MANIFEST_DIR"), event.as_str());
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn envelope(event_type: EventType) -> Envelope<'static> {
    let topic = event_type.topic();
    Envelope { event_type, topic, key: USER.as_bytes(), id: None, source: None, subject: None }
}

/// Reads a body as the data type of the envelope's topic.
fn read(envelope: &Envelope<'_>, body: &str) -> Result<Terms, EnvelopeError> {
    match envelope.event_type.topic() {
        PAYMENT_TOPIC => envelope.read::<Payment>(body.as_bytes()).map(|event_body| event_body.terms()),
        BALANCE_TOPIC => envelope.read::<LedgerEntry>(body.as_bytes()).map(|event_body| event_body.terms()),
        _ => envelope.read::<ChargeResult>(body.as_bytes()).map(|event_body| event_body.terms()),
    }
}

#[test]
fn every_golden_event_agrees_with_its_own_type_and_with_no_other() {
    for event in EventType::ALL {
        for body_of in EventType::ALL.iter().filter(|other| other.topic() == event.topic()) {
            let found = read(&envelope(*event), &golden(*body_of));
            assert_eq!(found.is_ok(), event == body_of, "{event:?} on the body of {body_of:?}: {found:?}");
            if let Err(error) = found {
                assert!(matches!(error, EnvelopeError::Contradicts(_)), "{error:?}");
            }
        }
    }
}

#[test]
fn whatever_is_there_outside_the_body_has_to_agree_with_it() {
    for event in EventType::ALL {
        let body = golden(*event);
        let event_id = match event.topic() {
            PAYMENT_TOPIC => serde_json::from_str::<Payment>(&body).unwrap().event_id(),
            BALANCE_TOPIC => serde_json::from_str::<LedgerEntry>(&body).unwrap().event_id(),
            _ => serde_json::from_str::<ChargeResult>(&body).unwrap().event_id(),
        };
        let topic = format!("prefix-{}", event.topic());
        let source = source(event.topic());
        let whole = Envelope {
            event_type: *event,
            topic: &topic,
            key: USER.as_bytes(),
            id: Some(&event_id),
            source: Some(source),
            subject: Some(PAYMENT),
        };
        read(&whole, &body).unwrap();
        for other in [
            Envelope { topic: "BalanceTopic.parked", ..whole },
            Envelope {
                topic: if event.topic() == PAYMENT_TOPIC { BALANCE_TOPIC } else { PAYMENT_TOPIC },
                ..whole
            },
            Envelope { key: b"", ..whole },
            Envelope { key: PAYMENT.as_bytes(), ..whole },
            Envelope { id: Some("payments/payments/1/1"), ..whole },
            Envelope { source: Some("/coro/somebody"), ..whole },
            Envelope { subject: Some(USER), ..whole },
        ] {
            let found = read(&other, &body);
            assert!(matches!(found, Err(EnvelopeError::Contradicts(_))), "{other:?}: {found:?}");
        }
    }
}

#[test]
fn a_body_that_its_own_database_would_refuse_is_none() {
    for (event, from, to) in [
        (EventType::BalanceHeld, "\"phase\":1", "\"phase\":2"),
        (EventType::BalanceCaptured, "\"phase\":2", "\"phase\":1"),
        (EventType::BalanceHeld, "\"reason\":null", "\"reason\":\"x\""),
        (EventType::PaymentCompleted, "\"status\":\"completed\"", "\"status\":\"failed\""),
        (EventType::PaymentCancelRequested, "\"status\":\"authorized\"", "\"status\":\"initiated\""),
        (EventType::ResultSucceeded, "\"gw-000001\"", "null"),
    ] {
        let body = golden(event);
        assert!(body.contains(from), "{event:?} has no {from}");
        let found = read(&envelope(event), &body.replace(from, to));
        assert!(matches!(found, Err(EnvelopeError::Contradicts(_))), "{event:?} {to}: {found:?}");
    }
    assert!(matches!(read(&envelope(EventType::BalanceHeld), "{}"), Err(EnvelopeError::Unreadable(_))));
}
