//! Tests the judgement of every kind of answer.

use serde_json::{Value, json};

use super::*;
use crate::breaker::Health;

const ID: &str = "0198c0de-0000-7000-8000-000000000001";

fn charge() -> Charge {
    Charge {
        payment_id: ID.parse().unwrap(),
        user_id: Uuid::nil(),
        client_number: "5551234".to_owned(),
        service_id: "power".to_owned(),
        amount: 15_000,
        traceparent: None,
    }
}

fn answer(status: u16, body: &Value) -> GatewayReply {
    GatewayReply::Answer { status, body: body.to_string().into_bytes() }
}

fn raw(status: u16, body: &[u8]) -> GatewayReply {
    GatewayReply::Answer { status, body: body.to_vec() }
}

fn succeeded() -> Value {
    json!({"status": "succeeded", "provider_reference": "ch_1", "reference": ID, "amount": 15_000})
}

fn declined() -> Value {
    json!({"status": "declined", "code": "no_funds", "reference": ID, "amount": 15_000})
}

fn rejected() -> Value {
    named(problem("invalid-charge"))
}

fn missing() -> Value {
    with(problem("charge-not-found"), "reference", json!(ID))
}

fn named(value: Value) -> Value {
    with(with(value, "reference", json!(ID)), "amount", json!(15_000))
}

/// Two references: nobody knows which one is meant.
const TWICE: &str = r#"{"status":"declined","code":"x","reference":"other","reference":"0198c0de-0000-7000-8000-000000000001","amount":15000}"#;

fn with(mut value: Value, field: &str, to: Value) -> Value {
    value[field] = to;
    value
}

fn without(mut value: Value, field: &str) -> Value {
    value.as_object_mut().unwrap().remove(field);
    value
}

fn problem(kind: &str) -> Value {
    json!({"type": format!("urn:gateway-sim:problem:{kind}"), "title": "x", "status": 400})
}

/// The outcome of a call as a short text.
fn call(reply: &GatewayReply) -> String {
    let outcome = judge_call(&charge(), reply);
    let alarm = outcome.cause().is_some_and(Cause::is_alarming);
    let text = match outcome {
        Outcome::Succeeded { provider_reference } => format!("succeeded {provider_reference}"),
        Outcome::Declined { code } => format!("declined {code}"),
        Outcome::NotSent { why } => format!("not sent {why}"),
        Outcome::Unknown { why } => format!("unknown {why}"),
    };
    if alarm { format!("{text}!") } else { text }
}

fn inquiry(reply: &GatewayReply) -> String {
    let lookup = judge_inquiry(&charge(), reply);
    let alarm = lookup.cause().is_some_and(Cause::is_alarming);
    let text = match lookup {
        Lookup::Succeeded { provider_reference, surplus: false } => format!("succeeded {provider_reference}"),
        Lookup::Succeeded { provider_reference, surplus: true } => format!("surplus to {provider_reference}"),
        Lookup::Declined { code } => format!("declined {code}"),
        Lookup::Voided => "voided".to_owned(),
        Lookup::NotFound => "not found".to_owned(),
        Lookup::Unavailable { why } => format!("unavailable {why}"),
    };
    if alarm { format!("{text}!") } else { text }
}

#[test]
fn what_an_answer_to_a_call_means() {
    let long = "x".repeat(200);
    let table = [
        (answer(200, &succeeded()), "succeeded ch_1"),
        (answer(200, &declined()), "declined no_funds"),
        (answer(402, &declined()), "declined no_funds"),
        (answer(400, &rejected()), "declined rejected_input"),
        (GatewayReply::NotConnected, "not sent not_connected"),
        (GatewayReply::Lost(Cause::TimedOut), "unknown timeout"),
        (GatewayReply::Lost(Cause::ConnectionLost), "unknown connection_lost"),
        // Without our name: a proxy, a cache, or the answer to somebody else.
        (answer(402, &json!({"status": "declined", "code": "no_funds"})), "unknown unnamed_answer"),
        (answer(402, &without(declined(), "reference")), "unknown unnamed_answer"),
        (answer(402, &without(declined(), "amount")), "unknown unnamed_answer"),
        (answer(200, &without(declined(), "amount")), "unknown unnamed_answer"),
        (answer(402, &with(declined(), "reference", json!(null))), "unknown unnamed_answer"),
        (answer(400, &problem("invalid-charge")), "unknown unnamed_answer"),
        (answer(400, &without(rejected(), "amount")), "unknown unnamed_answer"),
        (answer(400, &without(rejected(), "reference")), "unknown unnamed_answer"),
        (answer(200, &without(succeeded(), "amount")), "unknown unnamed_answer"),
        (answer(200, &without(succeeded(), "reference")), "unknown unnamed_answer"),
        (answer(200, &json!({"status": "ok"})), "unknown unnamed_answer"),
        (answer(402, &json!({"error": "pay for your proxy"})), "unknown unnamed_answer"),
        (raw(402, b"<html>"), "unknown unreadable_answer"),
        // A name that is not a name.
        (answer(402, &with(declined(), "reference", json!(7))), "unknown unreadable_answer"),
        (answer(402, &with(declined(), "amount", json!("15000"))), "unknown unreadable_answer"),
        (answer(402, &with(declined(), "amount", json!(15000.5))), "unknown unreadable_answer"),
        (raw(402, TWICE.as_bytes()), "unknown unreadable_answer"),
        // Another charge.
        (answer(200, &with(succeeded(), "amount", json!(15_001))), "unknown answer_mismatch!"),
        (answer(200, &with(succeeded(), "reference", json!("other"))), "unknown answer_mismatch!"),
        (answer(402, &with(declined(), "reference", json!("other"))), "unknown answer_mismatch!"),
        (answer(402, &with(declined(), "amount", json!(1))), "unknown answer_mismatch!"),
        (answer(400, &with(rejected(), "reference", json!("other"))), "unknown answer_mismatch!"),
        (answer(400, &with(rejected(), "amount", json!(1))), "unknown answer_mismatch!"),
        (answer(409, &with(problem("in-progress"), "reference", json!("other"))), "unknown answer_mismatch!"),
        (answer(422, &problem("idempotency-key-reused")), "unknown key_reused!"),
        // 200, but no outcome in it.
        (raw(200, b""), "unknown unreadable_answer"),
        (raw(200, b"{\"status\":\"succ"), "unknown unreadable_answer"),
        (raw(200, b"<html>"), "unknown unreadable_answer"),
        (answer(200, &json!([])), "unknown unreadable_answer"),
        (answer(200, &without(succeeded(), "provider_reference")), "unknown unreadable_answer"),
        (answer(200, &with(succeeded(), "provider_reference", json!(""))), "unknown unreadable_answer"),
        (answer(200, &with(succeeded(), "provider_reference", json!(long))), "unknown unreadable_answer"),
        (answer(200, &with(succeeded(), "provider_reference", json!("a\u{0}"))), "unknown unreadable_answer"),
        (answer(200, &with(succeeded(), "status", json!("pending"))), "unknown pending"),
        (answer(200, &with(succeeded(), "status", json!("voided"))), "unknown voided"),
        (answer(200, &with(succeeded(), "surplus", json!([{"amount": 1}]))), "unknown surplus!"),
        (answer(200, &without(declined(), "code")), "unknown unreadable_answer"),
        (answer(402, &succeeded()), "unknown unreadable_answer"),
        (answer(402, &with(declined(), "retryable", json!(true))), "unknown decline_retryable"),
        // Other statuses, whatever is in them.
        (answer(400, &named(problem("bad-request"))), "unknown http_400"),
        (answer(400, &problem("bad-request")), "unknown unnamed_answer"),
        (raw(400, b"<html>"), "unknown unreadable_answer"),
        (answer(201, &succeeded()), "unknown http_201"),
        (answer(302, &succeeded()), "unknown http_302"),
        (answer(401, &problem("unauthorized")), "unknown http_401"),
        (answer(404, &problem("charge-not-found")), "unknown http_404"),
        (answer(408, &problem("timeout")), "unknown http_408"),
        (answer(409, &problem("in-progress")), "unknown http_409"),
        (answer(429, &problem("too-many-requests")), "unknown http_429"),
        (answer(500, &declined()), "unknown http_500"),
        (raw(502, b"<html>"), "unknown http_502"),
        (answer(503, &succeeded()), "unknown http_503"),
    ];
    for (reply, expected) in table {
        assert_eq!(call(&reply), expected, "{reply:?}");
    }
}

#[test]
fn what_an_answer_to_an_inquiry_means() {
    let table = [
        (answer(200, &succeeded()), "succeeded ch_1"),
        (answer(200, &declined()), "declined no_funds"),
        // Where there is no charge there is no amount; if one is named it is ours.
        (answer(404, &missing()), "not found"),
        (answer(404, &with(missing(), "amount", json!(15_000))), "not found"),
        (answer(404, &with(missing(), "amount", json!(1))), "unavailable answer_mismatch!"),
        (answer(404, &with(missing(), "reference", json!("other"))), "unavailable answer_mismatch!"),
        (answer(404, &problem("charge-not-found")), "unavailable unnamed_answer"),
        (answer(404, &with(missing(), "type", json!("urn:x:not-found"))), "unavailable unnamed_answer"),
        (answer(404, &named(problem("not-found"))), "unavailable http_404"),
        (raw(404, b"<html>"), "unavailable unreadable_answer"),
        (answer(200, &json!({"status": "declined", "code": "no_funds"})), "unavailable unnamed_answer"),
        (answer(200, &without(declined(), "amount")), "unavailable unnamed_answer"),
        (answer(200, &with(declined(), "reference", json!("other"))), "unavailable answer_mismatch!"),
        (raw(200, b"<html>"), "unavailable unreadable_answer"),
        (raw(403, b"<html>"), "unavailable http_403"),
        (answer(402, &declined()), "unavailable http_402"),
        (answer(200, &with(succeeded(), "amount", json!(1))), "unavailable answer_mismatch!"),
        (answer(200, &with(declined(), "retryable", json!(true))), "unavailable decline_retryable"),
        (answer(200, &with(succeeded(), "status", json!("pending"))), "unavailable pending"),
        (answer(200, &json!({"status": "pending", "reference": "other"})), "unavailable answer_mismatch!"),
        (answer(200, &json!({"status": "voided"})), "unavailable unnamed_answer"),
        (answer(200, &json!({"status": "voided", "reference": ID})), "unavailable unnamed_answer"),
        (answer(200, &named(json!({"status": "voided"}))), "voided"),
        (answer(200, &named(json!({"status": "pending"}))), "unavailable pending"),
        (answer(200, &with(succeeded(), "surplus", json!([]))), "succeeded ch_1"),
        (answer(200, &with(succeeded(), "surplus", json!([{"amount": 1}]))), "surplus to ch_1"),
        (raw(200, b""), "unavailable unreadable_answer"),
        (answer(409, &problem("in-progress")), "unavailable http_409"),
        (raw(500, b""), "unavailable http_500"),
        (GatewayReply::NotConnected, "unavailable not_connected"),
        (GatewayReply::Lost(Cause::TimedOut), "unavailable timeout"),
    ];
    for (reply, expected) in table {
        assert_eq!(inquiry(&reply), expected, "{reply:?}");
    }
}

#[test]
fn the_key_of_a_payment_never_changes() {
    assert_eq!(key(ID.parse().unwrap()), ID);
}

#[test]
fn what_an_answer_to_a_call_says_about_the_gateway() {
    let table = [
        (answer(200, &succeeded()), Health::Answered),
        (answer(402, &declined()), Health::Answered),
        (answer(400, &rejected()), Health::Answered),
        (GatewayReply::NotConnected, Health::Unreachable),
        (GatewayReply::Lost(Cause::TimedOut), Health::Fault),
        (GatewayReply::Lost(Cause::ConnectionLost), Health::Fault),
        (raw(200, b""), Health::Fault),
        (raw(500, b""), Health::Fault),
        (raw(502, b"<html>"), Health::Fault),
        // Whatever stands in between: the gateway itself did not answer.
        (answer(402, &without(declined(), "amount")), Health::Fault),
        (raw(402, b"<html>"), Health::Fault),
        (raw(429, b""), Health::Fault),
        (answer(404, &problem("charge-not-found")), Health::Fault),
        // The gateway works, but this charge has no outcome.
        (answer(402, &with(declined(), "retryable", json!(true))), Health::Neither),
        (answer(409, &problem("in-progress")), Health::Neither),
        (answer(422, &problem("idempotency-key-reused")), Health::Neither),
        (answer(200, &with(succeeded(), "amount", json!(1))), Health::Neither),
    ];
    for (reply, expected) in table {
        assert_eq!(health(&judge_call(&charge(), &reply)), expected, "{reply:?}");
    }
}

#[test]
fn what_must_be_repaired_before_it_is_believed() {
    let lookups = [
        Lookup::Succeeded { provider_reference: "ch_1".to_owned(), surplus: false },
        Lookup::Succeeded { provider_reference: "ch_1".to_owned(), surplus: true },
        Lookup::Declined { code: "no_funds".to_owned() },
        Lookup::Voided,
        Lookup::NotFound,
        Lookup::Unavailable { why: Cause::TimedOut },
    ];
    let (others, reverse) = (Some(Repair::VoidOthers { keep: "ch_1".to_owned() }), Some(Repair::Reverse));
    let expected = |conclusive: bool, idempotent: bool| {
        let missing = if conclusive && !idempotent { reverse.clone() } else { None };
        [None, others.clone(), None, reverse.clone(), missing, None]
    };
    let succeeded = Finding::Succeeded { provider_reference: "ch_1".to_owned() };
    let voided = Finding::Declined { code: VOIDED.to_owned() };
    for (conclusive, idempotent) in [(false, false), (false, true), (true, false), (true, true)] {
        let repairs = lookups.clone().map(|lookup| lookup.repair(conclusive, idempotent));
        assert_eq!(repairs, expected(conclusive, idempotent), "{conclusive} {idempotent}");
        let missing =
            if conclusive && !idempotent { voided.clone() } else { Finding::NotFound { conclusive } };
        let findings = lookups.clone().map(|lookup| lookup.finding(conclusive, idempotent));
        let expected = [
            succeeded.clone(),
            succeeded.clone(),
            Finding::Declined { code: "no_funds".to_owned() },
            voided.clone(),
            missing,
            Finding::Unavailable { why: Cause::TimedOut },
        ];
        assert_eq!(findings, expected, "{conclusive} {idempotent}");
    }
}

#[test]
fn what_an_answer_to_a_void_means() {
    let voided = named(json!({"status": "voided", "voided": [], "barred": true}));
    let open = with(voided.clone(), "barred", json!(false));
    let judge = |reply: &GatewayReply, bars| {
        judge_void(&charge(), reply, bars).map_err(|cause| {
            let alarm = if cause.is_alarming() { "!" } else { "" };
            format!("{}{alarm}", Cause::Void(Box::new(cause)))
        })
    };
    assert_eq!(judge(&answer(200, &voided), true), Ok(()));
    assert_eq!(judge(&answer(200, &open), false), Ok(()));
    let table = [
        (answer(200, &open), "void_not_confirmed"),
        (answer(200, &with(voided.clone(), "reference", json!("other"))), "void_answer_mismatch!"),
        (answer(200, &with(voided.clone(), "amount", json!(1))), "void_answer_mismatch!"),
        (answer(200, &without(voided.clone(), "reference")), "void_unnamed_answer"),
        (answer(200, &without(voided.clone(), "amount")), "void_unnamed_answer"),
        (raw(403, b"<html>"), "void_http_403"),
        (answer(200, &with(voided.clone(), "status", json!("pending"))), "void_not_confirmed"),
        (answer(200, &without(voided.clone(), "barred")), "void_not_confirmed"),
        (raw(200, b"<html>"), "void_unreadable_answer"),
        (answer(503, &voided), "void_http_503"),
        (answer(422, &problem("unknown-charge")), "void_http_422"),
        (GatewayReply::NotConnected, "void_not_connected"),
        (GatewayReply::Lost(Cause::TimedOut), "void_timeout"),
    ];
    for (reply, why) in table {
        assert_eq!(judge(&reply, true), Err(why.to_owned()), "{reply:?}");
    }
}
