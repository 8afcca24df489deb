//! Tests that an event is read only if all its parts agree.

use super::*;

const USER: &str = "0198c0de-0000-7000-8000-000000000001";
const PAYMENT: &str = "0198c0de-0000-7000-8000-000000000002";
const SERVICE: &str = "electricity";

/// The key and the subject of a golden event.
fn key_and_subject(topic: &str) -> (&'static str, &'static str) {
    if topic == SERVICE_TOPIC { (SERVICE, SERVICE) } else { (USER, PAYMENT) }
}

fn golden(event: EventType) -> String {
    let path = format!("{}/golden/{}.json", env!("CARGO_MANIFEST_DIR"), event.as_str());
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn envelope(event_type: EventType) -> Envelope<'static> {
    let topic = event_type.topic();
    let (key, _) = key_and_subject(topic);
    Envelope { event_type, topic, key: key.as_bytes(), id: None, source: None, subject: None }
}

/// Reads a body as the data type of the envelope's topic; the answer is the event's id.
fn read(envelope: &Envelope<'_>, body: &str) -> Result<String, EnvelopeError> {
    fn id<T: EventBody>(envelope: &Envelope<'_>, body: &str) -> Result<String, EnvelopeError> {
        envelope.read::<T>(body.as_bytes()).map(|event_body| event_body.event_id())
    }
    match envelope.event_type.topic() {
        PAYMENT_TOPIC => id::<Payment>(envelope, body),
        BALANCE_TOPIC => id::<LedgerEntry>(envelope, body),
        SERVICE_TOPIC => id::<Service>(envelope, body),
        _ => id::<ChargeResult>(envelope, body),
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
        let event_id = read(&envelope(*event), &body).unwrap();
        let (key, subject) = key_and_subject(event.topic());
        let topic = format!("prefix-{}", event.topic());
        let source = source(event.topic());
        let whole = Envelope {
            event_type: *event,
            topic: &topic,
            key: key.as_bytes(),
            id: Some(&event_id),
            source: Some(source),
            subject: Some(subject),
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
        (EventType::ServiceAdded, "\"version\":1", "\"version\":2"),
    ] {
        let body = golden(event);
        assert!(body.contains(from), "{event:?} has no {from}");
        let found = read(&envelope(event), &body.replace(from, to));
        assert!(matches!(found, Err(EnvelopeError::Contradicts(_))), "{event:?} {to}: {found:?}");
    }
    assert!(matches!(read(&envelope(EventType::BalanceHeld), "{}"), Err(EnvelopeError::Unreadable(_))));
}
