//! `POST /payments`: parses a request to pay, and renders its outcome.
//!
//! * The idempotency key stands in the body, in the header `Idempotency-Key`, or in both and is equal.
//! * The header's value is a quoted string (RFC 9651, as draft-ietf-httpapi-idempotency-key-header asks) or the key alone,
//!   in ASCII either way. The body takes keys with other characters.
//! * A repeated request gets the bytes of the first 201, `Idempotent-Replayed: true`, and the same `Location`.
//! * A key that was used for another request is refused with 422, which names the payment that the key made.
//! * The id of a payment is derived from its request, so all of this holds for payments of a restored database too
//!   ([`crate::request`]).

use jiff::Timestamp;
use saga::fields::{Fields, text_error};
use saga::problem::{Kind, Problem};
use serde_json::Value;
use uuid::Uuid;
use warp::http::StatusCode;
use warp::http::header::{HeaderName, HeaderValue, LOCATION};
use warp::reply::Response;

use super::json_response;
use crate::accept::Acceptor;
use crate::render;
use crate::request::{fingerprint, payment_id};
use crate::store::{Acceptance, AcceptedPayment, NewPayment};

/// Length limits, in characters.
const CLIENT_NUMBER_CHARS_MAX: usize = 64;
pub(super) const SERVICE_ID_CHARS_MAX: usize = 64;
pub(super) const KEY_CHARS_MAX: usize = 255;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The parts of a request to pay.
pub(super) struct PayRequest {
    pub(super) user_id: Uuid,
    pub(super) idempotency_key: Option<HeaderValue>,
    pub(super) traceparent: String,
    pub(super) body: Value,
}

pub(super) async fn pay(acceptor: &Acceptor, request: PayRequest) -> Result<Response, Problem> {
    let payment = parse(request)?;
    match acceptor.accept(payment).await {
        Some(Acceptance::Created(accepted)) => Ok(created(&accepted)),
        Some(Acceptance::Replayed(accepted)) => {
            let mut response = created(&accepted);
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Some(Acceptance::KeyReused { payment_id }) => Err(Problem {
            payment_id: Some(payment_id),
            ..Problem::new(
                Kind::IdempotencyKeyReused,
                "Use a new key for a new payment, or send the same body again.",
            )
        }),
        Some(Acceptance::ServiceRefused) => Err(Problem::new(
            Kind::ServiceNotEnabled,
            "This service is unknown or disabled. Choose one that GET /services lists.",
        )),
        Some(Acceptance::Shed) => Err(Problem::new(
            Kind::Overloaded,
            "Payments are waiting too long. Nothing was made of this request; send it again later, with the same key.",
        )),
        None => Err(Problem::unavailable()),
    }
}

fn parse(request: PayRequest) -> Result<NewPayment, Problem> {
    let mut fields = Fields::of(request.body)?;
    let client_number = fields.text("client_number", CLIENT_NUMBER_CHARS_MAX);
    let service_id = fields.text("service_id", SERVICE_ID_CHARS_MAX);
    let amount = fields.amount("amount");
    let idempotency_key = key(&mut fields, request.idempotency_key.as_ref());
    fields.finish()?;
    Ok(NewPayment {
        user_id: request.user_id,
        payment_id: payment_id(Timestamp::now(), request.user_id, &idempotency_key),
        fingerprint: fingerprint(&client_number, &service_id, amount),
        idempotency_key,
        client_number,
        service_id,
        amount,
        traceparent: request.traceparent,
    })
}

/// The idempotency key of a request, whose header may carry it as well as its body.
fn key(fields: &mut Fields, header: Option<&HeaderValue>) -> String {
    let in_body = fields.optional_text("idempotency_key", KEY_CHARS_MAX);
    let in_header = header.map(|value| {
        key_of_header(value).unwrap_or_else(|error| {
            fields.refuse("Idempotency-Key", error);
            String::new()
        })
    });
    match (in_body, in_header) {
        (Some(body), Some(header)) if body != header && !header.is_empty() => {
            fields.refuse("Idempotency-Key", "differs from idempotency_key in the body");
            body
        }
        (Some(key), _) | (None, Some(key)) => key,
        (None, None) => {
            fields.refuse("idempotency_key", "is required, here or in the header Idempotency-Key");
            String::new()
        }
    }
}

/// The key that a header's value gives: a string in double quotes with `\"` and `\\` for these two characters, or the
/// value as it stands.
fn key_of_header(value: &HeaderValue) -> Result<String, String> {
    let text = value.to_str().map_err(|_| "must be ASCII; other keys go into the body".to_owned())?;
    let key = match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or("must be one string in double quotes, or have none")?,
        None => text.to_owned(),
    };
    text_error(&key, KEY_CHARS_MAX).map_or(Ok(key), Err)
}

/// The text up to the closing quote, which must be the last character.
fn unquoted(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(text),
            '\\' => text.push(characters.next().filter(|c| ['"', '\\'].contains(c))?),
            c => text.push(c),
        }
    }
}

fn created(accepted: &AcceptedPayment) -> Response {
    let mut response = json_response(StatusCode::CREATED, render::accepted(accepted));
    let location = format!("/payments/{}", accepted.payment_id);
    // A path of a UUID is always a valid header value.
    response.headers_mut().extend(HeaderValue::try_from(location).map(|value| (LOCATION, value)));
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({"client_number": "0812", "service_id": "electricity", "amount": 1, "idempotency_key": "k"})
    }

    fn parse_with(header: Option<&[u8]>, body: Value) -> Result<NewPayment, Problem> {
        let idempotency_key = header.map(|value| HeaderValue::from_bytes(value).unwrap());
        parse(PayRequest { user_id: Uuid::nil(), idempotency_key, traceparent: String::new(), body })
    }

    #[test]
    fn a_request_is_parsed_whole_or_not_at_all() {
        assert_eq!(parse_with(None, good()).unwrap().amount, 1);
        for (field, value) in [
            ("amount", json!(1.5)),
            ("amount", json!("1")),
            ("amount", json!(0)),
            ("idempotency_key", json!("")),
            ("idempotency_key", json!(null)),
            ("service_id", json!("x".repeat(65))),
            ("extra", json!(true)),
        ] {
            let mut bad = good();
            bad[field] = value;
            assert_eq!(parse_with(None, bad).unwrap_err().errors[0].field, field);
        }
    }

    #[test]
    fn a_key_stands_in_the_body_or_in_the_header_or_is_equal_in_both() {
        let without = || {
            let mut body = good();
            body.as_object_mut().unwrap().remove("idempotency_key");
            body
        };
        let key = |header: Option<&str>, body| {
            let parsed = parse_with(header.map(str::as_bytes), body);
            parsed.map(|payment| payment.idempotency_key).map_err(|problem| problem.errors[0].field.clone())
        };
        for (header, body, expected) in [
            (None, good(), Ok("k")),
            (Some("k"), good(), Ok("k")),
            (Some("\"k\""), good(), Ok("k")),
            (Some("k"), without(), Ok("k")),
            (Some("\"k\""), without(), Ok("k")),
            (Some("K"), good(), Err("Idempotency-Key")),
            (Some("\"k"), good(), Err("Idempotency-Key")),
            (None, without(), Err("idempotency_key")),
        ] {
            assert_eq!(key(header, body), expected.map(Into::into).map_err(Into::into), "{header:?}");
        }
    }

    #[test]
    fn a_header_gives_one_key() {
        let key = |value: &[u8]| key_of_header(&HeaderValue::from_bytes(value).unwrap()).ok();
        for (value, expected) in [
            (&b"order-1"[..], Some("order-1")),
            (b"a b", Some("a b")),
            (b"a\"b", Some("a\"b")),
            (b"\"order-1\"", Some("order-1")),
            (b"\"a\\\"b\\\\c\"", Some("a\"b\\c")),
            ("\u{e5}".as_bytes(), None),
            (b"", None),
            (b"\"\"", None),
            (b"\"a", None),
            (b"\"a\"b", None),
            (b"\"a\";p=1", None),
            (b"\"a\", \"b\"", None),
            (b"\"a\\n\"", None),
            (b"\" a\"", None),
            (b"\xff", None),
            ("\u{200b}".as_bytes(), None),
        ] {
            assert_eq!(key(value).as_deref(), expected, "{value:?}");
        }
        assert!(key(&[b'k'; 255]).is_some() && key(&[b'k'; 256]).is_none());
    }
}
