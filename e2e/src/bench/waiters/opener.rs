//! Opens streams of events as a listener meets them: by HTTP/2 from an edge, or by HTTP/1.1 with a connection each.

use anyhow::{Context, Result, ensure};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::Followed;

/// Streams that share a connection, as many as HAProxy puts on one.
const STREAMS_PER_CONNECTION: usize = 100;

pub struct Opener {
    authority: String,
    /// Of HTTP/2; none where each stream has a connection of its own.
    shared: Vec<http2::SendRequest<Empty<Bytes>>>,
}

impl Opener {
    /// For `streams` streams of the listener at `authority`.
    ///
    /// # Errors
    /// When the listener cannot be reached or does not speak HTTP/2.
    pub async fn new(authority: &str, streams: usize, http1: bool) -> Result<Self> {
        let mut shared = Vec::new();
        let connections = if http1 { 0 } else { streams.div_ceil(STREAMS_PER_CONNECTION) };
        for _ in 0..connections {
            let stream = connect(authority).await?;
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.context("HTTP/2")?;
            // Its end is also the end of every stream on it, where it is reported.
            tokio::spawn(async move { drop(connection.await) });
            shared.push(sender);
        }
        Ok(Self { authority: authority.to_owned(), shared })
    }

    /// The `nth` stream: that of this payment's events.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn open(&self, nth: usize, followed: Followed) -> Result<Incoming> {
        let Followed { user_id, payment_id } = followed;
        let path = format!("/payments/{payment_id}/events");
        let request = Request::get(path.as_str()).header("x-user-id", user_id.to_string());
        let response = if self.shared.is_empty() {
            let request = request.header(HOST, &self.authority).body(Empty::<Bytes>::new())?;
            let (mut sender, connection) = http1::handshake(connect(&self.authority).await?).await?;
            tokio::spawn(async move { drop(connection.await) });
            sender.send_request(request).await
        } else {
            let target = format!("http://{}{path}", self.authority);
            let mut sender = self.shared[nth % self.shared.len()].clone();
            sender.send_request(request.uri(target).body(Empty::new())?).await
        };
        let response: Response<Incoming> = response.with_context(|| path.clone())?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        Ok(response.into_body())
    }
}

async fn connect(authority: &str) -> Result<TokioIo<TcpStream>> {
    Ok(TokioIo::new(TcpStream::connect(authority).await.context("connect to payments-svc")?))
}
