//! The admin listener of the fraud detector; it has no other.

use saga::CancellationToken;
use saga::http;
use saga::postgres::Pool;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::SERVICE;
use crate::metrics::Metrics;

/// `/health`, `/ready`, `/metrics`.
pub fn admin(pool: Pool, metrics: &Metrics, leaving: CancellationToken) -> BoxedFilter<(Response,)> {
    http::admin(SERVICE, metrics.registry.clone(), http::ready_with(pool), leaving)
}
