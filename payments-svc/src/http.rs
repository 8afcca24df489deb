//! The HTTP interface of payments-svc.
//!
//! * Handlers parse and render. The store and the pure decisions do the work.
//! * A payment of another user, a payment that does not exist and a malformed id get the same 404.
//! * A failure of the database is 503 for the client and its cause is logged.

mod list;
mod pay;
mod search;
mod watch;

use saga::CancellationToken;
use saga::fields::parse_uuid;
use saga::http::{self, answer, unavailable};
use saga::identity::{Caller, Identity, Scope};
use saga::parked;
use saga::problem::{Kind, Problem};
use saga::rate_limit::RateLimit;
use saga::shards::Router;
use serde_json::{Value, json};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};

use self::pay::PayRequest;
use crate::SERVICE;
use crate::accept::Acceptor;
use crate::events::Payments;
use crate::metrics::Metrics;
use crate::reader::Reader;
use crate::render;
use crate::saga::Cancel;
use crate::search::Search;
use crate::store;
use crate::waiters::Waiters;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The parts of the service that requests of clients use.
#[derive(Clone)]
pub struct PublicContext {
    pub router: Router,
    pub acceptor: Acceptor,
    pub reader: Reader,
    pub waiters: Waiters,
    pub search: Search,
    pub metrics: Metrics,
    /// The instance is asked to stop: nobody is to wait at it any longer.
    pub leaving: CancellationToken,
}

/// `POST /payments`, `GET /payments`, `GET /payments/search`, `GET /payments/{id}`, `GET /payments/{id}/events`,
/// `POST /payments/{id}/cancel`, `GET /services`, `GET /openapi.yaml`, `GET /health`.
pub fn public(public: PublicContext, identity: &Identity, rate: &RateLimit) -> BoxedFilter<(Response,)> {
    let (reader, writer) = (rate.limit(identity.user(Scope::Read)), rate.limit(identity.user(Scope::Write)));
    let weight = public.metrics.weight.clone();
    let with = warp::any().map(move || public.clone());
    let pay = warp::path!("payments")
        .and(http::post())
        .and(writer.clone())
        .and(with.clone())
        .and(http::header(IDEMPOTENCY_KEY))
        .and(http::traceparent())
        .and(http::json_body())
        .then(|caller: Caller, public: PublicContext, idempotency_key, traceparent, body| async move {
            let request = PayRequest { user_id: caller.user_id, idempotency_key, traceparent, body };
            answer(pay::pay(&public.acceptor, request).await)
        });
    let list = warp::path!("payments")
        .and(http::get())
        .and(reader.clone())
        .and(with.clone())
        .and(http::query())
        .then(|caller: Caller, public: PublicContext, query| async move {
            answer(list::list(&public.router, caller.user_id, query).await)
        });
    let search = warp::path!("payments" / "search")
        .and(http::get())
        .and(reader.clone())
        .and(with.clone())
        .and(http::query())
        .then(|caller: Caller, public: PublicContext, query| async move {
            answer(search::search(&public.search, &public.metrics, caller.user_id, query).await)
        });
    let payment = warp::path!("payments" / String)
        .and(http::get())
        .and(reader.clone())
        .and(with.clone())
        .and(http::query())
        .then(|id: String, caller: Caller, public: PublicContext, query| async move {
            answer(watch::payment(&public, caller.user_id, &id, query).await)
        });
    let events = warp::path!("payments" / String / "events")
        .and(http::get())
        .and(reader)
        .and(with.clone())
        .and(http::header(LAST_EVENT_ID))
        .then(|id: String, caller: Caller, public: PublicContext, last_event_id| async move {
            answer(watch::events(&public, caller, &id, last_event_id).await)
        });
    let cancel =
        warp::path!("payments" / String / "cancel").and(http::post()).and(writer).and(with.clone()).then(
            |id: String, caller: Caller, public: PublicContext| async move {
                answer(cancel(&public, caller.user_id, &id).await)
            },
        );
    let services = warp::path!("services")
        .and(http::get())
        .and(with)
        .then(|public: PublicContext| async move { answer(services(&public.router).await) });
    let openapi = warp::path!("openapi.yaml").and(http::get()).map(openapi);
    // No id is called `search`: that route comes first.
    let payments =
        pay.or(list).unify().or(search).unify().or(payment).unify().or(events).unify().or(cancel).unify();
    let routes = payments.or(services).unify().or(openapi).unify().or(http::health(SERVICE)).unify();
    weight.on(routes.boxed())
}

/// The admin listener: `POST /parked/retry`, `POST /parked/dismiss`, `/health`, `/ready`, `/metrics`.
pub fn admin(
    router: &Router,
    payments: &Payments,
    metrics: &Metrics,
    leaving: CancellationToken,
) -> BoxedFilter<(Response,)> {
    // Its own databases only: accepting a payment needs nothing else.
    let ready = http::ready_with(router);
    let parked = parked::routes::routes(router, payments);
    parked.or(http::admin(SERVICE, metrics.registry.clone(), ready, leaving)).unify().boxed()
}

/// The description of the interface, for clients' tools (RFC 9512 names the media type).
fn openapi() -> Response {
    let mut response = include_str!("../../docs/openapi.yaml").into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
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

/// 202 with the payment: the request is recorded, and the events of the payment report its end.
async fn cancel(public: &PublicContext, user_id: Uuid, id: &str) -> Result<Response, Problem> {
    let payment_id = parse_uuid(id).ok_or_else(not_found)?;
    let cancel = |owned| async move { store::request_cancel(&owned, user_id, payment_id).await };
    let accepted = public.router.repeat(user_id, cancel).await.map_err(|error| unavailable(&error))?;
    match accepted.ok_or_else(not_found)? {
        Cancel::Record { row_event } => {
            public.metrics.transitions.with_label_values(&[row_event.as_str()]).inc();
        }
        Cancel::Already => {}
        Cancel::TooLate(status) => {
            return Err(Problem::new(Kind::PaymentEnded, format!("It is {}.", status.as_str())));
        }
    }
    let found = watch::read(&public.reader, user_id, payment_id).await?;
    Ok(json_response(StatusCode::ACCEPTED, render::payment(&found)))
}

/// Every shard has all of them, so any may answer.
async fn services(router: &Router) -> Result<Response, Problem> {
    let services = router.any(|pool| async move { store::services(&pool).await }).await;
    let services = services.map_err(|error| unavailable(&error))?;
    let services: Vec<Value> = services
        .into_iter()
        .map(|(service_id, name)| json!({"service_id": service_id, "name": name}))
        .collect();
    Ok(warp::reply::json(&json!({"services": services})).into_response())
}
