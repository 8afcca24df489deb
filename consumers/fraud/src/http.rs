//! The admin listener of the fraud detector; it has no other.

use std::sync::Arc;

use futures_util::FutureExt;
use saga::CancellationToken;
use saga::http::{self, Ready};
use saga::postgres::{self, Pool};
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::SERVICE;
use crate::metrics::Metrics;

/// `/health`, `/ready`, `/metrics`.
pub fn admin(pool: Pool, metrics: &Metrics, leaving: CancellationToken) -> BoxedFilter<(Response,)> {
    let ready: Ready = Arc::new(move || {
        let pool = pool.clone();
        async move { postgres::reachable(&pool).await }.boxed()
    });
    http::admin(SERVICE, metrics.registry.clone(), ready, leaving)
}
