//! The HTTP interface of processor-svc: webhooks of the gateway, and the admin listener with the acts of operators.
//!
//! * A webhook only makes an inquiry due. It never decides a charge, so a forged, repeated, late or lost webhook changes
//!   nothing but the time of an inquiry.
//! * A webhook must carry a valid signature. Without a secret there are no webhooks.

mod operators;
mod webhook_secrets;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use prometheus::Registry;
use saga::CancellationToken;
use saga::fields::parse_uuid;
use saga::http as edge;
use saga::parked;
use saga::problem::{Kind, Problem};
use saga::telemetry::log_text;
use serde::Deserialize;
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::{Reply, Response};

use crate::due_queue::DueQueue;
use crate::failpoints::{Failpoint, hit};
use crate::metrics::Metrics;
use crate::operators::Operators;
use crate::store::Store;
pub use webhook_secrets::WebhookSecrets;

/// The handler of webhooks.
pub struct Hooks {
    pub secrets: WebhookSecrets,
    pub store: Store,
    pub due_queue: DueQueue,
    pub metrics: Metrics,
}

#[derive(Deserialize)]
struct Notice {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    reference: String,
}

/// The public listener: `/health`, and `POST /webhooks/gateway` if there is a secret.
pub fn public(service: &'static str, hooks: Option<Hooks>) -> BoxedFilter<(Response,)> {
    let Some(hooks) = hooks.map(Arc::new) else { return edge::health(service) };
    let webhook = warp::path!("webhooks" / "gateway")
        .and(edge::post())
        .and(warp::header::headers_cloned())
        .and(edge::body())
        .then(move |headers: HeaderMap, body: Bytes| {
            let hooks = hooks.clone();
            async move { hooks.take(&headers, &body).await.unwrap_or_else(Reply::into_response) }
        });
    webhook.or(edge::health(service)).unify().boxed()
}

impl Hooks {
    /// Makes the inquiry about a charge due now.
    async fn take(&self, headers: &HeaderMap, body: &[u8]) -> Result<Response, Problem> {
        if let Err(error) = self.secrets.verify(body, headers) {
            Metrics::count(&self.metrics.gateway.webhooks, "refused");
            return Err(Problem::new(Kind::Signature, error.to_string()));
        }
        let notice: Notice = edge::read_json(body).map_err(|error| Problem::malformed(error.to_string()))?;
        // A reference that is not ours needs nothing, as one that has ended.
        let hastened = match parse_uuid(&notice.data.reference) {
            Some(payment_id) => self.hasten(payment_id).await?,
            None => false,
        };
        Metrics::count(&self.metrics.gateway.webhooks, if hastened { "hastened" } else { "needless" });
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    async fn hasten(&self, payment_id: Uuid) -> Result<bool, Problem> {
        let hastened = self.store.hasten(payment_id).await.map_err(|error| {
            tracing::warn!(
                error = log_text(&error),
                "the database failed; the webhook is answered 503, and the gateway repeats it"
            );
            Problem::unavailable()
        })?;
        hit(Failpoint::AfterHasten);
        if hastened {
            self.due_queue.set(payment_id, std::time::Duration::ZERO);
        }
        Ok(hastened)
    }
}

/// The admin listener: `POST /parked/retry`, `POST /parked/dismiss`, `POST /resolutions`,
/// `POST /resolutions/{id}/confirm`, `/health`, `/ready` (the database answers), `/metrics`.
pub fn admin(
    service: &'static str,
    store: Store,
    operators: &Operators,
    registry: Registry,
    leaving: CancellationToken,
) -> BoxedFilter<(Response,)> {
    let acts = parked::routes::routes(store.pool(), operators).or(operators::routes(operators)).unify();
    let ready = move || {
        let store = store.clone();
        async move { store.reachable().await }.boxed()
    };
    acts.or(edge::admin(service, registry, Arc::new(ready), leaving)).unify().boxed()
}
