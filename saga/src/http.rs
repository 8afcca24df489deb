//! HTTP edges: serving warp filters with the limits warp does not set, and what every listener offers.
//!
//! A connection is closed when its head or its body does not arrive in time; a body over the limit is
//! refused before it is read on. On shutdown no new connection is taken, requests under way are answered, with
//! `connection: close`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::problem::{FieldError, Problem, recover};

/// A request's head must be complete within this; it also ends idle keep-alive connections.
const HEAD_READ_MAX: Duration = Duration::from_secs(15);
/// A request's body must be complete within this.
const BODY_READ_MAX: Duration = Duration::from_secs(10);
/// Largest accepted body. The largest valid request is well under 1 kB.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Header fields per request; more is not a client of ours.
const HEADERS_MAX: usize = 64;
/// Open connections per listener; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long requests under way may take to end after shutdown was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves `routes` on `listener` until `shutdown`, then drains. Rejections become problem documents.
pub async fn serve<F, R>(listener: TcpListener, routes: F, shutdown: CancellationToken) -> anyhow::Result<()>
where
    F: Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
    R: Reply + 'static,
{
    let service = TowerToHyperService::new(warp::service(routes.recover(recover)));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_READ_MAX).max_headers(HEADERS_MAX);
    loop {
        let slot = slots.clone().acquire_owned().await.context("connection slots")?;
        let Some(stream) = accept(&listener, &shutdown).await else { break };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests still under way after {DRAIN_MAX:?} were cut");
    }
    Ok(())
}

/// The next connection, or nothing once shutdown was asked for. An accept that fails (no descriptors
/// left, a peer gone already) says nothing about the listener, so it is tried again after a moment.
async fn accept(listener: &TcpListener, shutdown: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                return Some(stream);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Extracts the body as it is, at most [`BODY_BYTES_MAX`] bytes, read within ten seconds.
pub fn body() -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    warp::body::stream()
        .and_then(|body| async move { read_in_time(body).await.map_err(warp::reject::custom) })
}

/// Extracts the body as JSON, at most [`BODY_BYTES_MAX`] bytes, read within ten seconds.
pub fn json_body() -> impl Filter<Extract = (serde_json::Value,), Error = Rejection> + Clone {
    warp::header::optional::<String>("content-type").and(warp::body::stream()).and_then(
        |content_type: Option<String>, body| async move {
            read_json(content_type, body).await.map_err(warp::reject::custom)
        },
    )
}

async fn read_json<S, B>(content_type: Option<String>, body: S) -> Result<serde_json::Value, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    if content_type.is_some_and(|value| !value.trim_start().starts_with("application/json")) {
        let title = "The body must be application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", title, title));
    }
    let bytes = read_in_time(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::malformed(error.to_string()))
}

async fn read_in_time<S, B>(body: S) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    tokio::time::timeout(BODY_READ_MAX, read_bounded(body)).await.unwrap_or_else(|_| {
        let title = "The body did not arrive in time.";
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", title, title))
    })
}

async fn read_bounded<S, B>(body: S) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let mut body = std::pin::pin!(body);
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Problem::malformed(error.to_string()))?;
        if bytes.len() + chunk.remaining() > BODY_BYTES_MAX {
            let title = "The body is too large.";
            let detail = format!("At most {BODY_BYTES_MAX} bytes are accepted.");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, detail));
        }
        bytes.extend_from_slice(chunk.chunk());
        debug_assert_eq!(chunk.chunk().len(), chunk.remaining(), "hyper hands out contiguous frames");
    }
    Ok(bytes.freeze())
}

/// Extracts the user from `X-User-ID`, which the edge sets after it authenticated the client.
pub fn user_id() -> impl Filter<Extract = (Uuid,), Error = Rejection> + Clone {
    warp::header::optional::<String>("x-user-id").and_then(|value: Option<String>| async move {
        parse_user_id(value.as_deref()).map_err(warp::reject::custom)
    })
}

fn parse_user_id(value: Option<&str>) -> Result<Uuid, Problem> {
    // Only the hyphenated form: one user must not be known under several spellings.
    let parsed = value.filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok());
    parsed.ok_or_else(|| {
        let detail = match value {
            Some(_) => "must be a UUID, such as 0198c0de-0000-7000-8000-000000000001",
            None => "is required",
        };
        Problem::validation(vec![FieldError { field: "X-User-ID".into(), detail: detail.into() }])
    })
}

/// Whether this process can do its work now; the text says what is wrong.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// `GET /health`: the process is alive. Asks no dependency, so that a restart is never caused by one.
pub fn health(service: &'static str) -> BoxedFilter<(Response,)> {
    warp::path!("health")
        .and(warp::get())
        .map(move || {
            let version = env!("CARGO_PKG_VERSION");
            let body = serde_json::json!({"status": "ok", "service": service, "version": version});
            warp::reply::json(&body).into_response()
        })
        .boxed()
}

/// The admin listener: `/health`, `/ready`, `/metrics`. Never exposed at the edge, which asks it for `/ready`: once
/// `leaving` is cancelled the answer is no, whatever still works.
pub fn admin(
    service: &'static str,
    registry: Registry,
    ready: Ready,
    leaving: CancellationToken,
) -> BoxedFilter<(Response,)> {
    let metrics = warp::path!("metrics").and(warp::get()).map(move || {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&registry.gather(), &mut text) {
            Ok(()) => {
                warp::reply::with_header(text, "content-type", "text/plain; version=0.0.4").into_response()
            }
            Err(error) => {
                tracing::error!(%error, "metrics cannot be encoded");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    });
    let readiness = warp::path!("ready").and(warp::get()).then(move || {
        let (ready, leaving) = (ready.clone(), leaving.clone());
        async move {
            let state = if leaving.is_cancelled() { Err("It is leaving.".to_owned()) } else { ready().await };
            match state {
                Ok(()) => warp::reply::json(&serde_json::json!({"status": "ready"})).into_response(),
                Err(why) => {
                    let title = "Not ready.";
                    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", title, why).into_response()
                }
            }
        }
    });
    health(service).or(metrics).unify().or(readiness).unify().boxed()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn only_a_hyphenated_uuid_is_a_user() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        assert_eq!(parse_user_id(Some(id)).unwrap().to_string(), id);
        let simple = id.replace('-', "");
        let urn = format!("urn:uuid:{id}");
        for bad in [None, Some(""), Some("bob"), Some(simple.as_str()), Some(urn.as_str())] {
            assert_eq!(parse_user_id(bad).unwrap_err().errors[0].field, "X-User-ID");
        }
    }

    async fn post(body: &[u8]) -> (u16, String) {
        let route = json_body().map(|v: serde_json::Value| v.to_string()).recover(recover);
        let reply = warp::test::request().method("POST").body(body).reply(&route).await;
        (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
    }

    #[tokio::test]
    async fn a_body_is_json_and_bounded() {
        assert_eq!(post(b"{\"a\":1}").await, (200, "{\"a\":1}".into()));
        assert_eq!(post(b"{\"a\":").await.0, 400);
        assert_eq!(post(b"").await.0, 400);
        assert_eq!(post(b"\xff\xfe").await.0, 400);
        let large = vec![b' '; BODY_BYTES_MAX + 1];
        assert_eq!(post(&large).await.0, 413);
    }

    #[tokio::test]
    async fn who_leaves_is_not_ready() {
        let (asked, ready): (_, Ready) = (CancellationToken::new(), Arc::new(|| Box::pin(async { Ok(()) })));
        let admin = admin("test", Registry::new(), ready, asked.clone());
        let ask = || async { warp::test::request().path("/ready").reply(&admin).await.status().as_u16() };
        assert_eq!(ask().await, 200);
        asked.cancel();
        assert_eq!(ask().await, 503);
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_and_no_other_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (at_work, go) = (entered.clone(), released.clone());
        let slow = warp::path!("slow").then(move || {
            let (at_work, go) = (at_work.clone(), go.clone());
            async move {
                at_work.notify_one();
                go.notified().await;
                "done"
            }
        });
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, slow, shutdown.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        entered.notified().await;
        shutdown.cancel();
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        released.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("done"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        served.await.unwrap().unwrap();
    }
}
