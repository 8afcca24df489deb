//! What this service answers: it takes no requests but those of its operators.

use std::sync::Arc;

use futures_util::FutureExt;
use prometheus::Registry;
use saga::http as edge;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::store::Store;

/// The public listener: `/health`.
pub fn public(service: &'static str) -> BoxedFilter<(Response,)> {
    edge::health(service)
}

/// The admin listener: `/health`, `/ready` (the database answers), `/metrics`.
pub fn admin(service: &'static str, store: Store, registry: Registry) -> BoxedFilter<(Response,)> {
    let ready = move || {
        let store = store.clone();
        async move { store.reachable().await }.boxed()
    };
    edge::admin(service, registry, Arc::new(ready))
}
