//! Reads work messages of the queue.
//!
//! * A message becomes a job, or a parked message with the reason why it cannot be read.
//! * Every function is pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use saga::contract::{AMOUNT_MAX, EventType, WorkMessage};
use saga::parked::{Parked, storable};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::charge::Charge;

/// Far above the limits of payments-svc; a longer text is no field of ours.
const TEXT_CHARS_MAX: usize = 1_000;

/// A message of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub body: Vec<u8>,
    pub message_id: Option<String>,
    pub kind: Option<String>,
    /// The headers with text values.
    pub headers: BTreeMap<String, String>,
}

/// One charge to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub charge: Charge,
    /// No first call is made after this time.
    pub expires_at: Option<Timestamp>,
}

/// Reads a message.
///
/// # Errors
/// When the message is malformed; the text says how.
pub fn read(message: &Message) -> Result<Job, String> {
    let expected = EventType::PaymentAuthorized.as_str();
    if let Some(kind) = message.kind.as_deref().filter(|kind| *kind != expected) {
        return Err(format!("the message type is {kind:?}, but must be {expected:?}"));
    }
    let work: WorkMessage = serde_json::from_slice(&message.body)
        .map_err(|error| format!("the body is no work message: {error}"))?;
    let work = work.payload;
    let expires_at = match message.headers.get("expires_at") {
        Some(text) => Some(
            text.parse()
                .map_err(|error| format!("the header expires_at {text:?} is no timestamp: {error}"))?,
        ),
        None => None,
    };
    let amount = amount(&work.amount)
        .ok_or_else(|| format!("the amount {:?} is no whole number from 1 to {AMOUNT_MAX}", work.amount))?;
    for (name, value) in [("client_number", &work.client_number), ("service_id", &work.service_id)] {
        if value.is_empty() || value.chars().count() > TEXT_CHARS_MAX || value.chars().any(char::is_control) {
            return Err(format!("{name} is empty, too long or has control characters"));
        }
    }
    let traceparent =
        message.headers.get("traceparent").filter(|value| saga::trace::is_valid(value)).cloned();
    let charge = Charge {
        payment_id: work.transaction_id,
        user_id: work.user_id,
        client_number: work.client_number,
        service_id: work.service_id,
        amount,
        traceparent,
    };
    Ok(Job { charge, expires_at })
}

/// An amount in plain decimal, as the relay writes it: no sign, no leading zero.
fn amount(text: &str) -> Option<i64> {
    let amount: i64 = text.parse().ok()?;
    let plain = !text.starts_with(['+', '0']);
    (plain && (1..=AMOUNT_MAX).contains(&amount)).then_some(amount)
}

/// The parked message. Its id is the message id or a hash of the body, so parking it twice changes nothing.
/// `parked::insert` keeps another message under the same id as well.
pub fn park(queue: &str, message: &Message, reason: &str) -> Parked {
    let name = match message.message_id.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => storable(id),
        None => Sha256::digest(&message.body).iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let headers = message
        .headers
        .iter()
        .map(|(name, value)| (storable(name), Value::String(storable(value))))
        .collect();
    Parked {
        parked_id: format!("{queue}/{name}"),
        source: queue.to_owned(),
        message_key: None,
        event_type: message.kind.as_deref().map(storable),
        headers: Value::Object(headers),
        body: message.body.clone(),
        reason: storable(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"payload":{"user_id":"0198c0de-0000-7000-8000-00000000000a","client_number":"5551234","service_id":"power","amount":"15000","transaction_id":"0198c0de-0000-7000-8000-000000000001"}}"#;
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn message(body: &str) -> Message {
        let headers = [("traceparent", TRACE), ("expires_at", "2026-11-23T00:00:00.000000Z")];
        Message {
            body: body.as_bytes().to_vec(),
            message_id: Some("payments/payments/1/2".to_owned()),
            kind: Some("payment.authorized.v1".to_owned()),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    fn parked(message: &Message) -> Parked {
        let reason = read(message).expect_err("unreadable");
        park("q", message, &reason)
    }

    #[test]
    fn the_contract_is_read() {
        let job = read(&message(BODY)).unwrap();
        assert_eq!(job.charge.payment_id.to_string(), "0198c0de-0000-7000-8000-000000000001");
        assert_eq!(job.charge.user_id.to_string(), "0198c0de-0000-7000-8000-00000000000a");
        assert_eq!((job.charge.amount, job.charge.client_number.as_str()), (15_000, "5551234"));
        assert_eq!(job.charge.service_id, "power");
        assert_eq!(job.charge.traceparent.as_deref(), Some(TRACE));
        assert_eq!(job.expires_at, Some("2026-11-23T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn properties_may_be_missing_and_a_bad_trace_is_dropped() {
        let bare = Message { body: BODY.as_bytes().to_vec(), ..Message::default() };
        let job = read(&bare).unwrap();
        assert_eq!((job.expires_at, job.charge.traceparent), (None, None));
        let mut bad = message(BODY);
        bad.headers.insert("traceparent".to_owned(), "zz".to_owned());
        assert_eq!(read(&bad).unwrap().charge.traceparent, None);
    }

    #[test]
    fn what_cannot_be_read_is_parked_with_its_reason() {
        let amounts =
            ["0", "-1", "+1", "01", "1.0", "1e3", " 1", "", "9007199254740992", "99999999999999999999"];
        let mut bad: Vec<String> =
            amounts.iter().map(|amount| BODY.replace("\"15000\"", &format!("\"{amount}\""))).collect();
        bad.extend(["", "{}", "null", "\u{0}", "{\"payload\":{}}"].map(str::to_owned));
        bad.push(BODY.replace("\"15000\"", "15000"));
        bad.push(BODY.replace("5551234", ""));
        bad.push(BODY.replace("5551234", "555\\u0000"));
        bad.push(BODY.replace("power", &"p".repeat(1_001)));
        bad.push(BODY.replace("0198c0de-0000-7000-8000-000000000001", "1"));
        bad.push(BODY.replace("\"amount\"", "\"currency\":\"x\",\"amount\""));
        for body in bad {
            let parked = parked(&message(&body));
            assert_eq!(parked.parked_id, "q/payments/payments/1/2");
            assert_eq!((parked.source.as_str(), parked.body), ("q", body.into_bytes()));
            assert_eq!(parked.event_type.as_deref(), Some("payment.authorized.v1"));
            assert_eq!(parked.headers["traceparent"], TRACE);
            assert!(!parked.reason.is_empty());
        }
        let mut other = message(BODY);
        other.kind = Some("payment.authorized.v2".to_owned());
        assert!(read(&other).is_err());
        let mut other = message(BODY);
        other.headers.insert("expires_at".to_owned(), "tomorrow".to_owned());
        assert!(read(&other).is_err());
    }

    #[test]
    fn a_parked_message_is_always_storable_and_named_by_its_body_if_it_has_no_id() {
        let odd = Message {
            body: b"\0\xff".to_vec(),
            message_id: None,
            kind: Some("a\0b".to_owned()),
            headers: [("n\0".to_owned(), "v\0".to_owned())].into(),
        };
        let parked = parked(&odd);
        assert_eq!(parked.parked_id, "q/06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7169389b8");
        let texts = format!("{}{:?}{}", parked.headers, parked.event_type, parked.reason.replace("\\0", ""));
        assert!(!texts.contains("\\0") && !texts.contains("\\u0000"), "{texts}");
    }
}
