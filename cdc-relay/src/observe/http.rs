//! Serves the admin listener: `/health` (alive), `/ready` (every source streams or stands by), `/metrics`.

use std::collections::BTreeMap;

use anyhow::Result;
use listener::{Audience, Reason, Refusal, Socket};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use warp::http::{Response, StatusCode};
use warp::reply::Reply;
use warp::{Filter, Rejection};

use crate::observe::metrics::Metrics;
use crate::observe::overview::Overview;
use crate::observe::status::{State, Status};

/// Serves `audience` until `shutdown`.
pub async fn serve(
    socket: Socket,
    metrics: Metrics,
    overview: Overview,
    audience: Audience,
    shutdown: CancellationToken,
) -> Result<()> {
    let with_overview = move || {
        let overview = overview.clone();
        warp::any().map(move || overview.clone())
    };
    let health = warp::path!("health").and(listener::get()).and(with_overview());
    let health = health.map(|overview: Overview| report("ok", &overview, StatusCode::OK));
    let ready = warp::path!("ready").and(listener::get()).and(with_overview());
    // By a routes file that cannot be used nothing changes, so what was ready still is.
    let ready = ready.map(|overview: Overview| {
        if overview.sources().iter().all(|source| source.get().is_ready()) {
            report("ready", &overview, StatusCode::OK)
        } else {
            report("not ready", &overview, StatusCode::SERVICE_UNAVAILABLE)
        }
    });
    let scrape = warp::path!("metrics").and(listener::get()).map(move || match metrics.render() {
        Ok(text) => answer(StatusCode::OK, "text/plain; version=0.0.4", text),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string().into_bytes()),
    });
    let routes = health.or(ready).unify().or(scrape).unify().recover(recover);
    listener::serve(socket, routes, audience, |refused| refuse(&refused).into_response(), shutdown).await
}

async fn recover(rejection: Rejection) -> Result<Response<Vec<u8>>, Rejection> {
    let refused = listener::refusal(&rejection);
    let refused = refused.unwrap_or_else(|| Refusal::new(Reason::NotFound, "There is no such resource."));
    Ok(refuse(&refused))
}

/// RFC 9457.
fn refuse(refused: &Refusal) -> Response<Vec<u8>> {
    let (kind, status) = (refused.reason.as_str(), refused.reason.status());
    let body = serde_json::json!({
        "type": format!("urn:cdc-relay:problem:{kind}"),
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": refused.detail,
    });
    answer(status, "application/problem+json", body.to_string().into_bytes())
}

/// A source in a report.
#[derive(Serialize)]
struct Reported {
    #[serde(flatten)]
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<String>,
}

fn report(status: &str, overview: &Overview, code: StatusCode) -> Response<Vec<u8>> {
    let sources = overview.sources();
    let reported = |source: &Status| Reported { state: source.get(), held: source.held() };
    let sources: BTreeMap<&str, Reported> =
        sources.iter().map(|source| (source.name(), reported(source))).collect();
    let routes_file = overview.routes_file();
    let body = serde_json::json!({ "status": status, "routes_file": routes_file, "sources": sources });
    answer(code, "application/json", body.to_string().into_bytes())
}

fn answer(code: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", warp::http::HeaderValue::from_static(content_type));
    response
}
