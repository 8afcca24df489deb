//! The HTTP interface of payments-svc.
//!
//! * Handlers parse and render. The store and the pure decisions do the work.
//! * A payment of another user, a payment that does not exist and a malformed id get the same 404.
//! * A failure of the database is 503 for the client and its cause is logged.

use std::sync::Arc;

use futures_util::FutureExt;
use saga::CancellationToken;
use saga::fields::{Fields, parse_uuid};
use saga::http::{self, Ready};
use saga::postgres::{self, Pool};
use saga::problem::{Kind, Problem};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use warp::reply::{Reply, Response};

use crate::SERVICE;
use crate::accept::Acceptor;
use crate::metrics::Metrics;
use crate::render;
use crate::saga::Cancel;
use crate::store::{self, Acceptance, AcceptedPayment, NewPayment};

/// Length limits, in characters.
const CLIENT_NUMBER_CHARS_MAX: usize = 64;
const SERVICE_ID_CHARS_MAX: usize = 64;
const KEY_CHARS_MAX: usize = 255;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// `POST /payments`, `GET /payments/{id}`, `POST /payments/{id}/cancel`, `GET /services`, `GET /health`.
pub fn public(pool: Pool, acceptor: Acceptor, metrics: Metrics) -> BoxedFilter<(Response,)> {
    let pay = warp::path!("payments")
        .and(http::post())
        .and(http::user_id())
        .and(http::traceparent())
        .and(http::json_body())
        .then(move |user_id, traceparent, body| {
            let acceptor = acceptor.clone();
            async move { answer(pay(&acceptor, user_id, traceparent, body).await) }
        });
    let reader = pool.clone();
    let payment = warp::path!("payments" / String).and(http::get()).and(http::user_id()).then(
        move |id: String, user_id| {
            let pool = reader.clone();
            async move { answer(payment(&pool, user_id, &id).await) }
        },
    );
    let canceller = pool.clone();
    let cancel = warp::path!("payments" / String / "cancel").and(http::post()).and(http::user_id()).then(
        move |id: String, user_id| {
            let (pool, metrics) = (canceller.clone(), metrics.clone());
            async move { answer(cancel(&pool, &metrics, user_id, &id).await) }
        },
    );
    let services = warp::path!("services").and(http::get()).then(move || {
        let pool = pool.clone();
        async move { answer(services(&pool).await) }
    });
    pay.or(payment).unify().or(cancel).unify().or(services).unify().or(http::health(SERVICE)).unify().boxed()
}

/// The admin listener: `/health`, `/ready`, `/metrics`.
pub fn admin(pool: &Pool, metrics: &Metrics, leaving: CancellationToken) -> BoxedFilter<(Response,)> {
    let pool = pool.clone();
    // Readiness needs its own database only: accepting a payment needs nothing else.
    let ready: Ready = Arc::new(move || {
        let pool = pool.clone();
        async move { postgres::reachable(&pool).await }.boxed()
    });
    http::admin(SERVICE, metrics.registry.clone(), ready, leaving)
}

fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(Reply::into_response)
}

fn unavailable(error: &anyhow::Error) -> Problem {
    tracing::warn!(error = format!("{error:#}"), "the database failed; the request is answered 503");
    Problem::unavailable()
}

async fn pay(
    acceptor: &Acceptor,
    user_id: Uuid,
    traceparent: String,
    body: Value,
) -> Result<Response, Problem> {
    let payment = parse(user_id, traceparent, body)?;
    match acceptor.accept(payment).await {
        Some(Acceptance::Created(accepted)) => Ok(created(&accepted)),
        Some(Acceptance::Replayed(accepted)) => {
            let mut response = created(&accepted);
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Some(Acceptance::KeyReused) => Err(Problem::new(
            Kind::IdempotencyKeyReused,
            "Use a new key for a new payment, or send the same body again.",
        )),
        Some(Acceptance::ServiceRefused) => Err(Problem::new(
            Kind::ServiceNotEnabled,
            "This service is unknown or disabled. Choose one that GET /services lists.",
        )),
        None => Err(Problem::unavailable()),
    }
}

fn parse(user_id: Uuid, traceparent: String, body: Value) -> Result<NewPayment, Problem> {
    let mut fields = Fields::of(body)?;
    let client_number = fields.text("client_number", CLIENT_NUMBER_CHARS_MAX);
    let service_id = fields.text("service_id", SERVICE_ID_CHARS_MAX);
    let amount = fields.amount("amount");
    let idempotency_key = fields.text("idempotency_key", KEY_CHARS_MAX);
    fields.finish()?;
    Ok(NewPayment {
        user_id,
        payment_id: Uuid::now_v7(),
        fingerprint: fingerprint(&client_number, &service_id, amount),
        idempotency_key,
        client_number,
        service_id,
        amount,
        traceparent,
    })
}

/// SHA-256 over the parsed fields, each with its length, so that no two requests share one by where a field ends.
/// It is stored, so it never changes between releases.
fn fingerprint(client_number: &str, service_id: &str, amount: i64) -> [u8; 32] {
    let mut hash = Sha256::new();
    for field in [client_number.as_bytes(), service_id.as_bytes(), &amount.to_be_bytes()] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

fn created(accepted: &AcceptedPayment) -> Response {
    let mut response = json_response(StatusCode::CREATED, render::accepted(accepted));
    let location = format!("/payments/{}", accepted.payment_id);
    // A path of a UUID is always a valid header value.
    response.headers_mut().extend(HeaderValue::try_from(location).map(|value| (LOCATION, value)));
    response
}

fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer for another user's payment, for a payment that does not exist, and for a malformed id.
fn not_found() -> Problem {
    Problem::not_found("You have no payment with this id.")
}

async fn payment(pool: &Pool, user_id: Uuid, id: &str) -> Result<Response, Problem> {
    let payment_id = parse_uuid(id).ok_or_else(not_found)?;
    let found = store::payment(pool, user_id, payment_id).await.map_err(|error| unavailable(&error))?;
    let found = found.ok_or_else(not_found)?;
    Ok(json_response(StatusCode::OK, render::payment(&found)))
}

/// 202 with the payment: the request is recorded, and the events of the payment report its end.
async fn cancel(pool: &Pool, metrics: &Metrics, user_id: Uuid, id: &str) -> Result<Response, Problem> {
    let payment_id = parse_uuid(id).ok_or_else(not_found)?;
    let accepted =
        store::request_cancel(pool, user_id, payment_id).await.map_err(|error| unavailable(&error))?;
    match accepted.ok_or_else(not_found)? {
        Cancel::Record { row_event } => metrics.transitions.with_label_values(&[row_event.as_str()]).inc(),
        Cancel::Already => {}
        Cancel::TooLate(status) => {
            return Err(Problem::new(Kind::PaymentEnded, format!("It is {}.", status.as_str())));
        }
    }
    let found = store::payment(pool, user_id, payment_id).await.map_err(|error| unavailable(&error))?;
    Ok(json_response(StatusCode::ACCEPTED, render::payment(&found.ok_or_else(not_found)?)))
}

async fn services(pool: &Pool) -> Result<Response, Problem> {
    let services = store::services(pool).await.map_err(|error| unavailable(&error))?;
    let services: Vec<Value> = services
        .into_iter()
        .map(|(service_id, name)| json!({"service_id": service_id, "name": name}))
        .collect();
    Ok(warp::reply::json(&json!({"services": services})).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_stable_and_keeps_fields_apart() {
        let hex: String =
            fingerprint("0812", "electricity", 15000).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "4544ab27c3e2ae832dcbe3a1b88615eea0b154a5471fc57eda5d7d173e7f9d86");
        assert_ne!(fingerprint("ab", "c", 1), fingerprint("a", "bc", 1));
        assert_ne!(fingerprint("a", "b", 1), fingerprint("a", "b", 2));
    }

    #[test]
    fn a_request_is_parsed_whole_or_not_at_all() {
        let user = Uuid::now_v7();
        let good = json!({"client_number": "0812", "service_id": "electricity", "amount": 1, "idempotency_key": "k"});
        assert_eq!(parse(user, String::new(), good.clone()).unwrap().amount, 1);
        for (field, value) in [
            ("amount", json!(1.5)),
            ("amount", json!("1")),
            ("amount", json!(0)),
            ("idempotency_key", json!("")),
            ("service_id", json!("x".repeat(65))),
            ("extra", json!(true)),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert_eq!(parse(user, String::new(), bad).unwrap_err().errors[0].field, field);
        }
    }
}
