//! The HTTP interface of the gateway.
//!
//! * `POST /charges`, header `Idempotency-Key`, body `{"reference", "amount", "client_number", "service_id"}`.
//!   200 `succeeded`, or 402 `declined`. The same key again: the same answer, nothing happens. The same key
//!   with another body: 422. The same key while its first call is undecided: 409, try again later.
//!   Every answer about a charge names it by `reference` and `amount`, as far as they are known.
//!   A charge that has begun is decided even if its caller goes away. 402 with `"retryable": true` is no decision.
//! * `GET /charges/{reference}`: the same document, with `surplus` if further charges stand; `pending`; `voided`; or
//!   404 `charge-not-found`.
//! * `POST /charges/{reference}/void`, body `{"keep": "ch_…"}` and optionally `amount`: voids every other charge of the
//!   reference. Body `{}`: voids all, and the reference is never charged again. It may be repeated.
//! * `GET /ledger`: every charge and void as NDJSON, in the order in which they were made.
//! * `GET /script`, `PUT /script` (directives, or JSON: see `mix.rs`), `PUT /outage`, `DELETE /outage` (`outage.rs`),
//!   `PUT /idempotency` (`honoured` or `ignored`): the behaviour from now on.
//! * `GET /health`, `GET /metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderMap};
use warp::reply::{Reply, Response};

use crate::charge::{charge, misbehave};
use crate::gateway::{Gateway, read, write};
use crate::inquiry::{inquire, void};
use crate::ledger::Ledger;
use crate::mix::Mix;
use crate::outage::How;
use crate::planned::{About, Call};
use crate::problem::{problem, recover};
use crate::script::Answer;

const BODY_BYTES_MAX: u64 = 16 * 1024;
const EXPORT_LINES_MAX: usize = 1_000;

pub fn routes(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let serving = business(gateway.clone());
    let admin = behaviour(gateway.clone());
    let with = with(gateway);
    let ledger = warp::path!("ledger").and(listener::get()).and(with.clone()).map(|gateway: Arc<Gateway>| {
        let pages = stream::iter(Pages { ledger: gateway.ledger.clone(), from: 0 });
        let reply = warp::reply::stream(pages);
        warp::reply::with_header(reply, CONTENT_TYPE, "application/x-ndjson").into_response()
    });
    let health = warp::path!("health").and(listener::get()).and(with.clone()).map(|gateway: Arc<Gateway>| {
        let (counts, version) = (gateway.ledger.counts(), env!("CARGO_PKG_VERSION"));
        let undecided = gateway.ledger.undecided();
        let body = json!({"status": "ok", "service": "gateway-sim", "version": version,
            "ledger": counts, "undecided": undecided});
        warp::reply::json(&body).into_response()
    });
    let metrics = warp::path!("metrics")
        .and(listener::get())
        .and(with)
        .map(|gateway: Arc<Gateway>| render_metrics(&gateway));
    let rest = ledger.or(admin).unify().or(health).unify().or(metrics).unify();
    serving.or(rest).unify().recover(recover).unify().boxed()
}

type With = BoxedFilter<(Arc<Gateway>,)>;

fn with(gateway: Arc<Gateway>) -> With {
    warp::any().map(move || gateway.clone()).boxed()
}

fn body() -> BoxedFilter<(Bytes,)> {
    warp::body::content_length_limit(BODY_BYTES_MAX).and(warp::body::bytes()).boxed()
}

/// The routes of merchants, which an outage takes away.
fn business(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let with = with(gateway);
    let charge = warp::path!("charges")
        .and(listener::unguarded_post())
        .and(warp::header::optional("idempotency-key"))
        .and(body())
        .and(with.clone())
        .then(|key: Option<String>, body: Bytes, gateway: Arc<Gateway>| async move {
            match gateway.outage() {
                Some(how) => unserved(&gateway, how, "").await,
                None => charge(gateway, key, body).await,
            }
        });
    let inquire = warp::path!("charges" / String).and(listener::get()).and(with.clone()).then(
        |reference: String, gateway: Arc<Gateway>| async move {
            match gateway.outage() {
                Some(how) => unserved(&gateway, how, &reference).await,
                None => match gateway.planned_faults.take(Call::Inquiry, &reference) {
                    Some((answer, amount)) => {
                        let (call, amount) = (Call::Inquiry, Some(amount));
                        misbehave(&gateway, answer, About { call, reference: &reference, amount }).await
                    }
                    None => inquire(&gateway, &reference),
                },
            }
        },
    );
    let void =
        warp::path!("charges" / String / "void").and(listener::unguarded_post()).and(body()).and(with).then(
            |reference: String, body: Bytes, gateway: Arc<Gateway>| async move {
                match gateway.outage() {
                    Some(how) => unserved(&gateway, how, &reference).await,
                    None => match gateway.planned_faults.take(Call::Void, &reference) {
                        Some((answer, amount)) => {
                            let (call, amount) = (Call::Void, Some(amount));
                            misbehave(&gateway, answer, About { call, reference: &reference, amount }).await
                        }
                        None => void(&gateway, &reference, &body),
                    },
                }
            },
        );
    charge.or(inquire).unify().or(void).unify().boxed()
}

/// The routes of operators, which change the behaviour.
fn behaviour(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let with = with(gateway);
    let show = warp::path!("script")
        .and(listener::get())
        .and(with.clone())
        .map(|gateway: Arc<Gateway>| warp::reply::json(read(&gateway.mix).config()).into_response());
    let script = warp::path!("script")
        .and(listener::put())
        .and(warp::header::headers_cloned())
        .and(body())
        .and(with.clone())
        .map(|headers: HeaderMap, body: Bytes, gateway: Arc<Gateway>| {
            let json = headers.get(CONTENT_TYPE).is_some_and(listener::media::is_json);
            changed(mix(json, &body).map(|mix| *write(&gateway.mix) = mix), "unknown-script")
        });
    let outage = warp::path!("outage").and(listener::put()).and(body()).and(with.clone()).map(
        |body: Bytes, gateway: Arc<Gateway>| {
            let outage = listener::json::read(&body).map_err(|error| error.to_string());
            let set = |outage| *write(&gateway.outage) = Some((outage, Instant::now()));
            changed(outage.map(set), "unknown-outage")
        },
    );
    let over =
        warp::path!("outage").and(listener::delete()).and(with.clone()).map(|gateway: Arc<Gateway>| {
            *write(&gateway.outage) = None;
            StatusCode::NO_CONTENT.into_response()
        });
    let keys = warp::path!("idempotency").and(listener::put()).and(body()).and(with).map(
        |body: Bytes, gateway: Arc<Gateway>| {
            let ignored = match body.as_ref() {
                b"honoured" => Ok(false),
                b"ignored" => Ok(true),
                _ => Err("the body must be `honoured` or `ignored`".to_owned()),
            };
            let set = |ignored| gateway.ignores_keys.store(ignored, Ordering::Relaxed);
            changed(ignored.map(set), "unknown-idempotency")
        },
    );
    show.or(script).unify().or(outage).unify().or(over).unify().or(keys).unify().boxed()
}

fn mix(json: bool, body: &[u8]) -> Result<Mix, String> {
    if json {
        return listener::json::read(body).map_err(|error| error.to_string()).and_then(Mix::of);
    }
    Mix::plain(std::str::from_utf8(body).map_err(|error| error.to_string())?.trim())
}

fn changed(set: Result<(), String>, kind: &str) -> Response {
    match set {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(detail) => problem(400, kind, &detail),
    }
}

/// The answer during an outage.
async fn unserved(gateway: &Gateway, how: How, reference: &str) -> Response {
    let about = About { call: Call::Charge, reference, amount: None };
    match how {
        How::Unavailable => gateway.refuse("outage", 503, "unavailable", "Out of order, as asked for."),
        How::Reset => misbehave(gateway, Answer::Reset, about).await,
        How::Hang => misbehave(gateway, Answer::Hang, about).await,
    }
}

fn render_metrics(gateway: &Gateway) -> Response {
    match gateway.metrics.render(gateway.ledger.counts()) {
        Ok(text) => warp::reply::with_header(text, CONTENT_TYPE, "text/plain; version=0.0.4").into_response(),
        Err(error) => problem(500, "internal", &error.to_string()),
    }
}

/// The export in pages, so that neither the lock nor RAM is held for the whole ledger.
struct Pages {
    ledger: Arc<Ledger>,
    from: usize,
}

impl Iterator for Pages {
    type Item = Result<String, std::convert::Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let (page, next) = self.ledger.export(self.from, EXPORT_LINES_MAX)?;
        self.from = next;
        Some(Ok(page))
    }
}
