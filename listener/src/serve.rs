//! The accept loop: serves warp filters with the limits that warp does not set.
//!
//! * Every answer names its request (`Request-Id`) and is kept by no cache, unless its route says otherwise.
//! * Every answer says what the web page that asked is allowed (CORS), if the listener has pages.
//! * A connection is closed when its head does not arrive in time.
//! * Who knows beforehand may speak HTTP/2 to a public listener, under TLS too: many long answers then share a connection and its
//!   buffers. Its streams are limited, and a connection whose peer is gone is closed.
//! * Open connections are limited by what the process may open; further ones wait.
//! * On shutdown no new connection is taken; requests under way are answered, with `connection: close`.

use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use warp::http::header::{ALLOW, CACHE_CONTROL, HOST, HeaderValue};
use warp::http::request::Parts;
use warp::http::{Method, Request, StatusCode, Version};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::Refusal;
use crate::answer_headers;
use crate::head;
use crate::methods::Offer;
use crate::operators::Audience;
use crate::request_id::{self, REQUEST_ID};
use crate::tls::{Socket, Stream, Tls};

/// A request's head must be complete within this; it also ends idle keep-alive connections.
const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of header fields per request.
const HEADERS_MAX: usize = 64;
/// Open connections per listener; further ones wait in the kernel's queue. Thousands of clients may follow their payments.
const CONNECTIONS_MAX: u64 = 16_384;
/// Open files that are left to the rest of the process: database, brokers, the other listener.
const FILES_RESERVED: u64 = 256;
/// Bytes of one connection that wait to be parsed or sent. The largest head that is accepted is smaller.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Requests under way on one connection of HTTP/2; further ones wait for its client.
const STREAMS_MAX: u32 = 1_000;
/// Bytes of a request's head by HTTP/2.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Bytes of all bodies that may be under way to us on one connection of HTTP/2: they are small.
const WINDOW_BYTES: u32 = 256 * 1024;
/// A connection of HTTP/2 is asked so often whether its peer is there, which has to answer within the same time.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long requests under way may take to end after shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `routes` on `socket` to `audience` until `shutdown`, then answers the requests under way. `render` renders refusals.
///
/// # Errors
/// When the process may open next to no files.
pub async fn serve<F, R>(
    socket: impl Into<Socket>,
    routes: F,
    audience: Audience,
    render: fn(Refusal) -> Response,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    F: Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
    R: Reply + 'static,
{
    let Socket { listener, tls } = socket.into();
    let routes = TowerToHyperService::new(warp::service(routes));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(connections_max()?));
    loop {
        let slot = slots.clone().acquire_owned().await.context("the semaphore of connections is closed")?;
        let Some(stream) = accept(&listener, &shutdown).await else { break };
        let (routes, audience) = (routes.clone(), audience.clone());
        let of_connection = audience.clone();
        // In a box, which ends with the answer's head: hyper keeps room for the future as long as the connection, and it has
        // several kilobytes. Thousands of connections carry a stream of events, or wait for their next request.
        let service =
            service_fn(move |request| Box::pin(answer(routes.clone(), audience.clone(), render, request)));
        let (watcher, shutdown) = (graceful.watcher(), shutdown.clone());
        let connection = serve_connection(tls.clone(), stream, service, of_connection, watcher, shutdown);
        // Each holds its slot to its end.
        tokio::spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "requests were still under way {DRAIN_TIMEOUT:?} after shutdown; their connections are cut"
        );
    }
    Ok(())
}

/// Raises the soft limit of open files as far as it is needed and allowed: it is 1,024 in most places.
fn connections_max() -> anyhow::Result<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX + FILES_RESERVED;
    let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let files = current.map_or(wanted, |current| current.max(allowed));
    if current.is_some_and(|current| current < files) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum })
            .context("the limit of open files")?;
    }
    let connections = files.saturating_sub(FILES_RESERVED).min(CONNECTIONS_MAX);
    ensure!(connections > 0, "at most {files} files may be open, which is too few; see `ulimit -Hn`");
    Ok(usize::try_from(connections)?)
}

async fn serve_connection<S>(
    tls: Tls,
    stream: TcpStream,
    service: S,
    audience: Audience,
    watcher: Watcher,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    match tls.accept(stream, &shutdown).await {
        // In boxes, so that a connection has room for one of the two and for no handshake.
        Ok(Stream::Plain(stream)) => Box::pin(serve_http(stream, service, &audience, watcher)).await,
        Ok(Stream::Encrypted(stream)) => Box::pin(serve_http(stream, service, &audience, watcher)).await,
        Err(error) => tracing::debug!(%error, "no TLS"),
    }
}

async fn serve_http<T, S>(stream: T, service: S, audience: &Audience, watcher: Watcher)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_connection_window_size(WINDOW_BYTES);
    if !matches!(audience, Audience::Public(_)) {
        http = http.http1_only();
    }
    let is_asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        is_asked.store(true, Ordering::Relaxed);
        service.call(request)
    });
    let connection = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
    // hyper limits the time of a head once it knows the version of HTTP, and not the time before.
    let late = async {
        tokio::time::sleep(HEAD_READ_TIMEOUT).await;
        if is_asked.load(Ordering::Relaxed) {
            future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(error, "connection ended");
            }
        }
        () = late => tracing::debug!("nothing was asked on a connection in time"),
    }
}

/// HTTP/2 says the host in the target, and may repeat it as a header. The former counts (RFC 9113, section 8.3.1), and
/// everything here reads it from the header.
fn name_host(parts: &mut Parts) {
    if parts.version == Version::HTTP_2
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, host);
    }
}

/// One request: refused by its head, or answered by its route, with the headers that every answer has.
pub async fn answer<S>(
    routes: S,
    audience: Audience,
    render: fn(Refusal) -> Response,
    request: Request<Incoming>,
) -> Result<Response, Infallible>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let (mut parts, body) = request.into_parts();
    name_host(&mut parts);
    let (id, grant) = (request_id::of(&parts.headers), audience.grant(&parts));
    let answered = refuse_or_route(routes, audience, render, Request::from_parts(parts, body));
    let (answered, given) = request_id::scope(id.clone(), answer_headers::collect(answered)).await;
    let mut response = answered?;
    grant.write(&mut response);
    let headers = response.headers_mut();
    headers.extend(given);
    headers.insert(REQUEST_ID, id);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Refuses the request by its head, or lets its route answer it. A refusal says which methods there are.
async fn refuse_or_route<S>(
    routes: S,
    audience: Audience,
    render: fn(Refusal) -> Response,
    request: Request<Incoming>,
) -> Result<Response, Infallible>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let (mut parts, body) = request.into_parts();
    if let Err(refusal) = head::check(&parts).and_then(|()| audience.admit(&parts)) {
        return Ok(render(refusal));
    }
    let writing = audience.may_write(&parts).map(|operator| {
        if let Some(operator) = operator {
            parts.extensions.insert(operator);
        }
    });
    let offer = Arc::new(Offer::new(writing));
    parts.extensions.insert(offer.clone());
    let asks_for_options = parts.method == Method::OPTIONS;
    let mut response = routes.call(Request::from_parts(parts, body)).await?;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Some(allow) = offer.allow()
    {
        if asks_for_options {
            response = StatusCode::NO_CONTENT.into_response();
        }
        response.headers_mut().insert(ALLOW, allow);
    }
    Ok(response)
}

/// The next connection; `None` after shutdown. A failed accept (no descriptors left, a peer that is gone) does not mean
/// that the listener failed, so it is repeated after a moment.
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
                tracing::warn!(%error, "a connection cannot be accepted; the next one is tried");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
