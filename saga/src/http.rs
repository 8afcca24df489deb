//! The HTTP listeners of the services: the filters that routes share, and the routes that every listener has.
//!
//! * The crate `listener` serves, and refuses bad requests before any route runs.
//! * A connection is closed when its body does not arrive in time; a body over the limit is refused before the rest is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use listener::Refusal;
pub use listener::json::read as read_json;
pub use listener::tls::install_provider;
pub use listener::{Audience, Operators, Origins, Socket, Tls, delete, get, post, put};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::postgres;
use crate::problem::{Kind, Problem, recover};
use crate::query::Query;
use crate::shards::Databases;
use crate::telemetry::log_text;
use crate::trace::traceparent_or_new;

/// A request's body must be complete within this.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// One of several databases that takes longer does not make its service ready. The edge waits for a second.
const READY_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest accepted body. The largest valid request is well under 1 kB.
pub const BODY_BYTES_MAX: usize = 16 * 1024;

/// Serves `routes` on `socket` to `audience` until `shutdown`, then drains. Rejections become problem documents.
pub async fn serve<F, R>(
    socket: impl Into<Socket>,
    routes: F,
    audience: Audience,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    F: Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
    R: Reply + 'static,
{
    let render = |refusal: Refusal| Problem::from(refusal).into_response();
    listener::serve(socket, routes.recover(recover), audience, render, shutdown).await
}

/// Extracts the body as it is, at most [`BODY_BYTES_MAX`] bytes, read within ten seconds.
pub fn body() -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    warp::body::stream()
        .and_then(|body| async move { read_in_time(body).await.map_err(warp::reject::custom) })
}

/// Extracts the body as JSON, at most [`BODY_BYTES_MAX`] bytes, read within ten seconds. No member is given twice.
pub fn json_body() -> impl Filter<Extract = (serde_json::Value,), Error = Rejection> + Clone {
    header(CONTENT_TYPE).and(warp::body::stream()).and_then(
        |content_type: Option<HeaderValue>, body| async move {
            read_json_body(content_type, body).await.map_err(warp::reject::custom)
        },
    )
}

async fn read_json_body<S, B>(
    content_type: Option<HeaderValue>,
    body: S,
) -> Result<serde_json::Value, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    if content_type.is_some_and(|value| !listener::media::is_json(&value)) {
        return Err(Problem::of(Kind::MediaType));
    }
    let bytes = read_in_time(body).await?;
    listener::json::parse(&bytes).map_err(|error| Problem::malformed(error.to_string()))
}

/// The value of a header. The crate `listener` has refused a header that is given twice.
pub fn header(name: HeaderName) -> impl Filter<Extract = (Option<HeaderValue>,), Error = Infallible> + Clone {
    warp::header::headers_cloned().map(move |headers: HeaderMap| headers.get(&name).cloned())
}

async fn read_in_time<S, B>(body: S) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    tokio::time::timeout(BODY_READ_TIMEOUT, read_bounded(body))
        .await
        .unwrap_or_else(|_| Err(Problem::new(Kind::Timeout, "The body did not arrive in time.")))
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
            let detail = format!("At most {BODY_BYTES_MAX} bytes are accepted.");
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        bytes.extend_from_slice(chunk.chunk());
        debug_assert_eq!(chunk.chunk().len(), chunk.remaining(), "hyper hands out contiguous frames");
    }
    Ok(bytes.freeze())
}

/// Extracts the parameters of the query string; none for a request without one.
pub fn query() -> impl Filter<Extract = (Query,), Error = Infallible> + Clone {
    warp::query::raw()
        .or_else(|_| async { Ok::<_, Infallible>((String::new(),)) })
        .map(|text: String| Query::of(Some(&text)))
}

/// Extracts the trace of the request, or a new one when the header is missing or malformed.
pub fn traceparent() -> impl Filter<Extract = (String,), Error = Infallible> + Clone {
    warp::header::headers_cloned().map(|headers: HeaderMap| {
        let mut given = headers.get_all("traceparent").iter();
        let one = given.next().filter(|_| given.next().is_none());
        traceparent_or_new(one.and_then(|value| value.to_str().ok()))
    })
}

/// The answer to a request: a problem is one too.
pub fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(Reply::into_response)
}

/// A JSON document with this status.
pub fn json_reply(status: StatusCode, body: &serde_json::Value) -> Response {
    warp::reply::with_status(warp::reply::json(body), status).into_response()
}

/// 503, since the database failed. The log has the cause.
pub fn unavailable(error: &anyhow::Error) -> Problem {
    log_unavailable("database", error);
    Problem::unavailable()
}

/// Logs why a request is answered 503, with the id by which its client may ask. `failed`: what it could not do without.
pub fn log_unavailable(failed: &str, error: &anyhow::Error) {
    let request_id = listener::request_id::current().unwrap_or_default();
    tracing::warn!(error = log_text(error), request_id, "the {failed} failed; the request is answered 503");
}

/// Whether this process can work now; the error says why not.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A process that can work if its database answers; with several, as soon as one of them does, within half a second.
pub fn ready_with(databases: impl Into<Databases>) -> Ready {
    let databases = databases.into();
    Arc::new(move || {
        let pools = databases.pools();
        async move {
            if let [pool] = &pools[..] {
                return postgres::reachable(pool).await;
            }
            let in_time = |pool| tokio::time::timeout(READY_TIMEOUT, postgres::reachable(pool));
            let late = |_| Err("a database does not answer in time".to_owned());
            any_ready(pools.iter().map(|pool| in_time(pool).map(move |done| done.unwrap_or_else(late)))).await
        }
        .boxed()
    })
}

/// Does not wait for the others once one says yes.
async fn any_ready(
    answers: impl Iterator<Item = impl Future<Output = Result<(), String>>>,
) -> Result<(), String> {
    let mut answers: FuturesUnordered<_> = answers.collect();
    let mut away = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(()) => return Ok(()),
            Err(why) => away.push(why),
        }
    }
    Err(away.join("; "))
}

/// `GET /health`: the process is alive. Asks no dependency, so that a restart is never caused by one.
pub fn health(service: &'static str) -> BoxedFilter<(Response,)> {
    warp::path!("health")
        .and(listener::get())
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
    let metrics = warp::path!("metrics").and(listener::get()).map(move || {
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
    let readiness = warp::path!("ready").and(listener::get()).then(move || {
        let (ready, leaving) = (ready.clone(), leaving.clone());
        async move {
            let state = if leaving.is_cancelled() { Err("It is leaving.".to_owned()) } else { ready().await };
            match state {
                Ok(()) => warp::reply::json(&serde_json::json!({"status": "ready"})).into_response(),
                Err(why) => Problem::new(Kind::NotReady, why).into_response(),
            }
        }
    });
    health(service).or(metrics).unify().or(readiness).unify().boxed()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::shards::Router;

    #[tokio::test]
    async fn every_request_has_a_query() {
        let limit = |mut query: Query| query.limit().to_string();
        let route = query().map(limit);
        for (path, expected) in [("/", "20"), ("/?", "20"), ("/?limit=5", "5")] {
            let reply = warp::test::request().path(path).reply(&route).await;
            assert_eq!((reply.status().as_u16(), &**reply.body()), (200, expected.as_bytes()), "{path}");
        }
    }

    async fn send(body: &[u8]) -> (u16, String) {
        let route = json_body().map(|v: serde_json::Value| v.to_string()).recover(recover);
        let reply = warp::test::request().method("POST").body(body).reply(&route).await;
        (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
    }

    #[tokio::test]
    async fn a_body_is_json_and_bounded() {
        assert_eq!(send(b"{\"a\":1}").await, (200, "{\"a\":1}".into()));
        assert_eq!(send(b"{\"a\":").await.0, 400);
        assert_eq!(send(b"").await.0, 400);
        assert_eq!(send(b"\xff\xfe").await.0, 400);
        assert_eq!(send(b"{\"a\":1,\"a\":1}").await.0, 400);
        let large = vec![b' '; BODY_BYTES_MAX + 1];
        assert_eq!(send(&large).await.0, 413);
    }

    /// The edge takes an instance out that does not answer within a second.
    #[tokio::test]
    async fn one_database_that_answers_is_enough_and_nobody_waits_for_the_others() {
        let (yes, no) = (
            || async { Ok(()) }.boxed(),
            |why: &str| {
                let why = why.to_owned();
                async move { Err(why) }.boxed()
            },
        );
        let frozen = || std::future::pending().boxed();
        assert_eq!(any_ready([frozen(), yes(), no("a")].into_iter()).await, Ok(()));
        assert_eq!(any_ready([no("a"), no("b")].into_iter()).await, Err("a; b".to_owned()));
    }

    /// They take connections, and answer nothing.
    #[tokio::test]
    async fn databases_that_are_frozen_are_not_waited_for() {
        install_provider();
        let (one, two) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let url = |socket: &TcpListener| format!("postgres://u@{}/none", socket.local_addr().unwrap());
        let list = format!("one={} two={}", url(&one), url(&two));
        let router = Router::listed(&list, |url| postgres::pool(url, 1, "test")).unwrap();
        let late = "a database does not answer in time";
        assert_eq!(ready_with(&router)().await, Err(format!("{late}; {late}")));
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
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
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
        let served = tokio::spawn(serve(socket, slow, Audience::Anyone, shutdown.clone()));
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
