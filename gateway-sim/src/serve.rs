//! The accept loop of the gateway.
//!
//! * A response marked [`Abort`] is not sent; its connection ends instead. Warp's own loop cannot do that.
//! * On shutdown no new connection is taken, and requests under way are answered.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use listener::tls::Stream;
use listener::{Audience, Socket, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::Response;

const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How the connection of a response that is never sent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// With a FIN.
    Close,
    /// With a RST.
    Reset,
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the script drops this connection")
    }
}

impl std::error::Error for Abort {}

/// Serves until `shutdown`, then answers what is under way.
pub async fn serve(
    socket: Socket,
    routes: BoxedFilter<(Response,)>,
    audience: Audience,
    shutdown: CancellationToken,
) {
    let Socket { listener, tls } = socket;
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted; the next one is tried");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (routes, audience, watcher) = (routes.clone(), audience.clone(), graceful.watcher());
        let (tls, shutdown) = (tls.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(&tls, stream, routes, audience, watcher, &shutdown).await {
                tracing::debug!(%error, "a connection cannot be served and is closed");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "requests were still under way {DRAIN_TIMEOUT:?} after shutdown; their connections are cut"
        );
    }
}

async fn connection(
    tls: &Tls,
    stream: TcpStream,
    routes: BoxedFilter<(Response,)>,
    audience: Audience,
    watcher: Watcher,
    shutdown: &CancellationToken,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // A second handle keeps the socket open until its end (FIN or RST) is decided.
    let socket = stream.as_fd().try_clone_to_owned()?;
    match tls.accept(stream, shutdown).await? {
        Stream::Plain(stream) => serve_http(stream, &socket, routes, audience, watcher).await,
        Stream::Encrypted(stream) => serve_http(stream, &socket, routes, audience, watcher).await,
    }
    drop(socket);
    Ok(())
}

async fn serve_http<T>(
    stream: T,
    socket: &OwnedFd,
    routes: BoxedFilter<(Response,)>,
    audience: Audience,
    watcher: Watcher,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let warp = TowerToHyperService::new(warp::service(routes));
    let service = hyper::service::service_fn(move |request| {
        let render = |refusal| crate::problem::refuse(&refusal);
        let reply = listener::serve::answer(warp.clone(), audience.clone(), render, request);
        async move {
            let response: Response = match reply.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            match response.extensions().get::<Abort>() {
                Some(abort) => Err(*abort),
                None => Ok(response),
            }
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_READ_TIMEOUT);
    let Err(error) = watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await else {
        return;
    };
    let abort = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<Abort>());
    if abort == Some(&Abort::Reset)
        && let Err(error) = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))
    {
        tracing::warn!(%error, "the socket refuses to reset; the connection ends with a FIN instead");
    }
    tracing::debug!(%error, "connection ended");
}
