//! Renders payments as JSON for clients.
//!
//! * The 201 of a payment is a pure function of columns that never change, so a repeated request gets the same bytes.
//! * Golden tests keep the documents the same over releases.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::saga::{CancelAnswer, Status, cancel_answer};
use crate::search::Hit;
use crate::store::{AcceptedPayment, Payment};

#[derive(Serialize)]
struct AcceptedDocument<'a> {
    payment_id: Uuid,
    user_id: Uuid,
    client_number: &'a str,
    service_id: &'a str,
    amount: i64,
    status: &'a str,
    initiated_at: String,
    expires_at: String,
}

#[derive(Serialize)]
struct PaymentDocument<'a> {
    #[serde(flatten)]
    accepted: AcceptedDocument<'a>,
    reason: Option<&'a str>,
    /// The gateway may have charged, and is inquired of: the user must not pay again.
    outcome_unknown: bool,
    /// `requested`, `honoured` or `refused`; null without a request to cancel.
    cancel: Option<&'static str>,
    version: i32,
    timeline: Vec<Milestone>,
}

#[derive(Serialize)]
struct PageDocument<'a> {
    payments: Vec<PaymentDocument<'a>>,
    /// Null at the end of the list.
    next_cursor: Option<&'a str>,
}

#[derive(Serialize)]
struct HitDocument<'a> {
    #[serde(flatten)]
    payment: PaymentDocument<'a>,
    highlight: HighlightDocument<'a>,
}

/// HTML: the matching parts in `<em>`, everything else escaped; null where nothing matches.
#[derive(Serialize)]
struct HighlightDocument<'a> {
    client_number: Option<&'a str>,
    service_name: Option<&'a str>,
}

#[derive(Serialize)]
struct SearchPageDocument<'a> {
    payments: Vec<HitDocument<'a>>,
    /// Null at the end of the list.
    next_cursor: Option<&'a str>,
}

#[derive(Serialize)]
struct Milestone {
    status: &'static str,
    at: String,
}

/// The body of the 201.
pub fn accepted(accepted: &AcceptedPayment) -> Vec<u8> {
    to_json(&document(accepted, Status::Initiated.as_str()))
}

/// The body of `GET /payments/{id}`, and the data of its events.
pub fn payment(payment: &Payment) -> Vec<u8> {
    to_json(&payment_document(payment))
}

/// The body of `GET /payments`.
pub fn page(payments: &[Payment], next_cursor: Option<&str>) -> Vec<u8> {
    to_json(&PageDocument { payments: payments.iter().map(payment_document).collect(), next_cursor })
}

/// The body of `GET /payments/search`.
pub fn search_page(hits: &[Hit], next_cursor: Option<&str>) -> Vec<u8> {
    to_json(&SearchPageDocument { payments: hits.iter().map(hit_document).collect(), next_cursor })
}

fn hit_document(hit: &Hit) -> HitDocument<'_> {
    let Hit { payment, highlight } = hit;
    let highlight = HighlightDocument {
        client_number: highlight.client_number.as_deref(),
        service_name: highlight.service_name.as_deref(),
    };
    HitDocument { payment: payment_document(payment), highlight }
}

fn payment_document(payment: &Payment) -> PaymentDocument<'_> {
    PaymentDocument {
        accepted: document(&payment.accepted, &payment.status),
        reason: payment.reason.as_deref(),
        outcome_unknown: payment.is_outcome_unknown(),
        cancel: cancel(payment),
        version: payment.version,
        timeline: timeline(payment),
    }
}

fn document<'a>(accepted: &'a AcceptedPayment, status: &'a str) -> AcceptedDocument<'a> {
    AcceptedDocument {
        payment_id: accepted.payment_id,
        user_id: accepted.user_id,
        client_number: &accepted.client_number,
        service_id: &accepted.service_id,
        amount: accepted.amount,
        status,
        initiated_at: rfc3339(accepted.initiated_at),
        expires_at: rfc3339(accepted.expires_at),
    }
}

fn cancel(payment: &Payment) -> Option<&'static str> {
    let status = Status::parse(&payment.status)?;
    cancel_answer(status, payment.cancel_requested_at.is_some()).map(CancelAnswer::as_str)
}

/// The milestones of a payment, in order of time.
fn timeline(payment: &Payment) -> Vec<Milestone> {
    let mut milestones = vec![(payment.accepted.initiated_at, "initiated")];
    let reached = [
        (payment.cancel_requested_at, "cancel_requested"),
        (payment.authorized_at, "authorized"),
        (payment.completed_at, "completed"),
        (payment.rejected_at, "rejected"),
        (payment.failed_at, "failed"),
        (payment.cancelled_at, "cancelled"),
    ];
    milestones.extend(reached.into_iter().filter_map(|(at, status)| Some((at?, status))));
    milestones.sort_by_key(|(at, _)| *at);
    milestones.into_iter().map(|(at, status)| Milestone { status, at: rfc3339(at) }).collect()
}

/// RFC 3339 with six decimals: the precision of the database, and one width for every reader.
fn rfc3339(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn to_json<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document)
        .unwrap_or_else(|_| unreachable!("plain structs with text keys always serialize"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> AcceptedPayment {
        AcceptedPayment {
            user_id: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            payment_id: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
            client_number: "081234567890".into(),
            service_id: "electricity".into(),
            amount: 15000,
            initiated_at: "2026-01-02T03:04:05.12Z".parse().unwrap(),
            expires_at: "2026-01-02T03:19:05Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_201_is_golden() {
        let golden = r#"{"payment_id":"0198c0de-0000-7000-8000-000000000002","user_id":"0198c0de-0000-7000-8000-000000000001","client_number":"081234567890","service_id":"electricity","amount":15000,"status":"initiated","initiated_at":"2026-01-02T03:04:05.120000Z","expires_at":"2026-01-02T03:19:05.000000Z"}"#;
        assert_eq!(String::from_utf8(accepted(&example())).unwrap(), golden);
    }

    #[test]
    fn a_timeline_is_in_order_of_time() {
        let body = payment(&Payment {
            accepted: example(),
            status: "failed".into(),
            reason: Some("declined:do_not_honor".into()),
            version: 3,
            authorized_at: Some("2026-01-02T03:04:06Z".parse().unwrap()),
            completed_at: None,
            rejected_at: None,
            failed_at: Some("2026-01-02T03:04:07Z".parse().unwrap()),
            cancelled_at: None,
            cancel_requested_at: None,
        });
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let statuses: Vec<_> =
            body["timeline"].as_array().unwrap().iter().map(|m| m["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["initiated", "authorized", "failed"]);
    }

    /// A payment in this status, with or without a request to cancel.
    fn in_status(status: &str, cancel_requested: bool) -> Payment {
        let at = |second: u32| Some(format!("2026-01-02T03:04:{second:02}Z").parse().unwrap());
        let when = |wanted: &str| if status == wanted { at(8) } else { None };
        Payment {
            accepted: example(),
            status: status.into(),
            reason: None,
            version: 3,
            authorized_at: if status == "initiated" || status == "rejected" { None } else { at(6) },
            completed_at: when("completed"),
            rejected_at: when("rejected"),
            failed_at: when("failed"),
            cancelled_at: when("cancelled"),
            cancel_requested_at: if cancel_requested { at(7) } else { None },
        }
    }

    fn document_of(status: &str, cancel_requested: bool) -> serde_json::Value {
        serde_json::from_slice(&payment(&in_status(status, cancel_requested))).unwrap()
    }

    #[test]
    fn a_payment_says_what_became_of_the_request_to_cancel_it() {
        for (status, expected) in [
            ("initiated", "requested"),
            ("authorized", "requested"),
            ("cancelled", "honoured"),
            ("completed", "refused"),
            ("failed", "refused"),
            ("rejected", "refused"),
        ] {
            assert_eq!(document_of(status, true)["cancel"], expected, "{status}");
            let unasked = document_of(status, false);
            assert!(unasked.as_object().unwrap().contains_key("cancel"), "{status}: {unasked}");
            assert_eq!(unasked["cancel"], serde_json::Value::Null, "{status}");
        }
    }

    #[test]
    fn only_a_payment_that_has_not_ended_has_an_unknown_outcome() {
        for (status, reason, unknown) in [
            ("initiated", None, false),
            ("authorized", None, false),
            ("authorized", Some("timeout"), true),
            ("completed", None, false),
            ("failed", Some("declined:do_not_honor"), false),
            ("rejected", Some("insufficient_funds"), false),
        ] {
            let example = Payment { reason: reason.map(str::to_owned), ..in_status(status, false) };
            let document: serde_json::Value = serde_json::from_slice(&payment(&example)).unwrap();
            assert_eq!(document["outcome_unknown"], unknown, "{status} {reason:?}");
        }
    }

    #[test]
    fn the_document_of_a_payment_is_golden() {
        let document = payment(&Payment {
            accepted: example(),
            status: "completed".into(),
            reason: None,
            version: 4,
            authorized_at: Some("2026-01-02T03:04:06Z".parse().unwrap()),
            completed_at: Some("2026-01-02T03:04:08Z".parse().unwrap()),
            rejected_at: None,
            failed_at: None,
            cancelled_at: None,
            cancel_requested_at: Some("2026-01-02T03:04:07Z".parse().unwrap()),
        });
        let golden = r#"{"payment_id":"0198c0de-0000-7000-8000-000000000002","user_id":"0198c0de-0000-7000-8000-000000000001","client_number":"081234567890","service_id":"electricity","amount":15000,"status":"completed","initiated_at":"2026-01-02T03:04:05.120000Z","expires_at":"2026-01-02T03:19:05.000000Z","reason":null,"outcome_unknown":false,"cancel":"refused","version":4,"timeline":[{"status":"initiated","at":"2026-01-02T03:04:05.120000Z"},{"status":"authorized","at":"2026-01-02T03:04:06.000000Z"},{"status":"cancel_requested","at":"2026-01-02T03:04:07.000000Z"},{"status":"completed","at":"2026-01-02T03:04:08.000000Z"}]}"#;
        assert_eq!(String::from_utf8(document).unwrap(), golden);
    }
}
