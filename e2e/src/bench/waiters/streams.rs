//! Clients that follow payments by the streams of their events, on one listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coroctl::client::Client;
use coroctl::stack::Stack;
use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Followed, REQUESTS_AT_ONCE, pay};
use crate::bench::cpu::Meter;
use crate::bench::users::Users;

/// The process whose listener is measured.
const LISTENER: &str = "payments-svc";
/// The outage ends by itself if the benchmark dies.
const OUTAGE_MS: u64 = 300_000;
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(240);
/// A line of a stream is a document, which is below 2 kB.
const BUFFER_BYTES: usize = 2048;

/// The figures.
#[derive(Clone, Copy, Serialize)]
pub struct Streams {
    pub clients: usize,
    pub memory_bytes_before: u64,
    pub memory_bytes_with_all: u64,
    /// From the first connection until each client has its first document.
    pub open_seconds: f64,
    /// From the moment when the gateway is back until the last stream has ended.
    pub end_seconds: f64,
}

/// Opens `count` streams, measures, and lets their payments end.
pub async fn measure(
    stack: &Stack,
    client: &Client,
    meter: &Meter,
    users: &Users,
    count: usize,
) -> Result<Streams> {
    allow_descriptors(count)?;
    outage(stack, true).await?;
    let measured = while_the_gateway_is_away(stack, client, meter, users, count).await;
    outage(stack, false).await?;
    let (mut streams, mut clients) = measured?;
    let began = Instant::now();
    let ended = async {
        while let Some(ended) = clients.join_next().await {
            ended.context("client")??;
        }
        anyhow::Ok(())
    };
    if let Ok(ended) = tokio::time::timeout(END_TIMEOUT, ended).await {
        ended?;
    } else {
        bail!(
            "{} of {count} streams have not ended {END_TIMEOUT:?} after the gateway was back",
            clients.len()
        );
    }
    streams.end_seconds = began.elapsed().as_secs_f64();
    Ok(streams)
}

async fn while_the_gateway_is_away(
    stack: &Stack,
    client: &Client,
    meter: &Meter,
    users: &Users,
    count: usize,
) -> Result<(Streams, JoinSet<Result<()>>)> {
    tracing::info!(count, "paying while the gateway is away");
    let payments = pay(client, users, super::super::caller::CLIENT_NUMBER, count).await?;
    if let Some(Followed { user_id, payment_id }) = payments.last() {
        client.wait_for_status(*user_id, *payment_id, "authorized", OPEN_TIMEOUT).await?;
    }
    let authority: Arc<str> =
        stack.payments_url.strip_prefix("http://").context("PAYMENTS_URL is no http:// URL")?.into();
    let memory_bytes_before = meter.memory_bytes(LISTENER)?;
    tracing::info!(count, "opening streams");
    let began = Instant::now();
    let opened = Arc::new(Semaphore::new(0));
    let connected: Vec<(BufReader<TcpStream>, Followed)> = stream::iter(payments)
        .map(|followed| connect(authority.clone(), followed))
        .buffer_unordered(REQUESTS_AT_ONCE)
        .try_collect()
        .await?;
    let mut clients = JoinSet::new();
    for (connection, followed) in connected {
        clients.spawn(follow(connection, followed, opened.clone()));
    }
    let all = u32::try_from(count).context("too many streams")?;
    tokio::select! {
        opened = tokio::time::timeout(OPEN_TIMEOUT, opened.acquire_many(all)) => {
            let _all = opened.context("some streams did not begin")?;
        }
        Some(ended) = clients.join_next() => bail!("a stream ended before its payment: {ended:?}"),
    }
    let streams = Streams {
        clients: count,
        memory_bytes_before,
        memory_bytes_with_all: meter.memory_bytes(LISTENER)?,
        open_seconds: began.elapsed().as_secs_f64(),
        end_seconds: 0.0,
    };
    Ok((streams, clients))
}

/// Sends the request. A connection of its own for each client, as a listener sees them.
async fn connect(authority: Arc<str>, followed: Followed) -> Result<(BufReader<TcpStream>, Followed)> {
    let mut connection = TcpStream::connect(&*authority).await.context("connect to payments-svc")?;
    let Followed { user_id, payment_id } = followed;
    let request = format!(
        "GET /payments/{payment_id}/events HTTP/1.1\r\nhost: {authority}\r\nx-user-id: {user_id}\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.context("GET /payments/{id}/events")?;
    Ok((BufReader::with_capacity(BUFFER_BYTES, connection), followed))
}

/// Reads one stream to its end. Each event is one chunk of the body, so a line of a stream is a line of the connection.
async fn follow(
    mut connection: BufReader<TcpStream>,
    Followed { payment_id, .. }: Followed,
    opened: Arc<Semaphore>,
) -> Result<()> {
    let (mut line, mut version, mut is_terminal) = (String::new(), 0, false);
    loop {
        line.clear();
        let read =
            connection.read_line(&mut line).await.with_context(|| format!("the stream of {payment_id}"))?;
        let text = line.trim_end();
        if read == 0 || text == "0" {
            ensure!(
                is_terminal,
                "the stream of {payment_id} ended after version {version}, before its payment"
            );
            return Ok(());
        }
        if text.starts_with("HTTP/") {
            ensure!(text.contains(" 200 "), "the stream of {payment_id} was refused: {text}");
        } else if let Some(id) = text.strip_prefix("id:") {
            let id: u64 = id.trim().parse().with_context(|| format!("the id {id} of an event"))?;
            ensure!(id > version, "the stream of {payment_id} repeats version {id}");
            if version == 0 {
                opened.add_permits(1);
            }
            version = id;
        } else if let Some(document) = text.strip_prefix("data:") {
            is_terminal = document.contains(r#""status":"completed""#);
        }
    }
}

/// Begins or ends an outage of the gateway.
async fn outage(stack: &Stack, begins: bool) -> Result<()> {
    let url = format!("{}/outage", stack.gateway_url);
    let http = reqwest::Client::new();
    let request = if begins { http.put(url).json(&json!({"for_ms": OUTAGE_MS})) } else { http.delete(url) };
    let answer = request.bearer_auth(&stack.admin_token).send().await.context("the gateway's outage")?;
    answer.error_for_status().context("the gateway's outage")?;
    Ok(())
}

/// Each stream is a descriptor of ours, and there are a few besides.
fn allow_descriptors(streams: usize) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = streams as u64 + 1000;
    if current.is_some_and(|current| current < wanted) {
        ensure!(
            maximum.is_none_or(|maximum| maximum >= wanted),
            "{streams} streams need {wanted} open files, and this process may open {maximum:?}; see `ulimit -Hn`"
        );
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).context("ulimit -n")?;
    }
    Ok(())
}
