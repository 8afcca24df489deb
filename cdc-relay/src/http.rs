//! The admin listener: `/health` (alive), `/ready` (every source streams or stands by), `/metrics`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use tokio::net::TcpListener;
use warp::Filter;
use warp::http::{Response, StatusCode};

use crate::metrics::Metrics;
use crate::status::{State, Status};

/// Serves until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    sources: Vec<Status>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let sources = Arc::new(sources);
    let with_sources = move || {
        let sources = Arc::clone(&sources);
        warp::any().map(move || Arc::clone(&sources))
    };
    let health = warp::path!("health").and(with_sources()).map(|sources: Arc<Vec<Status>>| {
        let _ = &sources;
        report("ok", &sources, StatusCode::OK)
    });
    let ready = warp::path!("ready").and(with_sources()).map(|sources: Arc<Vec<Status>>| {
        if sources.iter().all(|source| source.get().is_ready()) {
            report("ready", &sources, StatusCode::OK)
        } else {
            report("not ready", &sources, StatusCode::SERVICE_UNAVAILABLE)
        }
    });
    let scrape = warp::path!("metrics").map(move || match metrics.render() {
        Ok(text) => answer(StatusCode::OK, "text/plain; version=0.0.4", text),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string().into_bytes()),
    });
    let routes = warp::get().and(health.or(ready).unify().or(scrape).unify());
    warp::serve(routes).incoming(listener).graceful(shutdown).run().await;
}

fn report(status: &str, sources: &[Status], code: StatusCode) -> Response<Vec<u8>> {
    let sources: BTreeMap<&str, State> = sources.iter().map(|source| (source.name(), source.get())).collect();
    let body = serde_json::json!({ "status": status, "sources": sources });
    answer(code, "application/json", body.to_string().into_bytes())
}

fn answer(code: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", warp::http::HeaderValue::from_static(content_type));
    response
}
