//! The admin listener of the auditor; it has no other.

use futures_util::FutureExt;
use saga::CancellationToken;
use saga::http::{self, Ready};
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::SERVICE;
use crate::metrics::Metrics;
use crate::store::Store;

/// `/health`, `/ready`, `/metrics`.
pub fn admin(store: Store, metrics: &Metrics, leaving: CancellationToken) -> BoxedFilter<(Response,)> {
    let ready: Ready = std::sync::Arc::new(move || {
        let store = store.clone();
        async move { store.reachable().await }.boxed()
    });
    http::admin(SERVICE, metrics.registry.clone(), ready, leaving)
}
