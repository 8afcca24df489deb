//! Clients that follow payments by the streams of their events, on one listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coroctl::client::Client;
use coroctl::stack::Stack;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::opener::Opener;
use super::{Followed, REQUESTS_AT_ONCE, pay};
use crate::bench::cpu::Meter;
use crate::bench::users::Users;

/// The process whose listener is measured.
const LISTENER: &str = "payments-svc";
/// The outage ends by itself if the benchmark dies.
const OUTAGE_MS: u64 = 300_000;
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(240);

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

/// Opens `count` streams, by HTTP/2 as the edge does or by HTTP/1.1, measures, and lets their payments end.
pub async fn measure(
    stack: &Stack,
    client: &Client,
    meter: &Meter,
    users: &Users,
    count: usize,
    http1: bool,
) -> Result<Streams> {
    allow_descriptors(count)?;
    outage(stack, true).await?;
    let measured = while_the_gateway_is_away(stack, client, meter, users, count, http1).await;
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
    http1: bool,
) -> Result<(Streams, JoinSet<Result<()>>)> {
    tracing::info!(count, "paying while the gateway is away");
    let payments = pay(client, users, super::super::caller::CLIENT_NUMBER, count).await?;
    if let Some(Followed { user_id, payment_id }) = payments.last() {
        client.wait_for_status(*user_id, *payment_id, "authorized", OPEN_TIMEOUT).await?;
    }
    let authority = stack.payments_url.strip_prefix("http://").context("PAYMENTS_URL is no http:// URL")?;
    let opener = &Opener::new(authority, count, http1).await?;
    let memory_bytes_before = meter.memory_bytes(LISTENER)?;
    tracing::info!(count, "opening streams");
    let began = Instant::now();
    let opened = Arc::new(Semaphore::new(0));
    let streams: Vec<(Incoming, Followed)> = stream::iter(payments.into_iter().enumerate())
        .map(|(nth, followed)| async move { anyhow::Ok((opener.open(nth, followed).await?, followed)) })
        .buffer_unordered(REQUESTS_AT_ONCE)
        .try_collect()
        .await?;
    let mut clients = JoinSet::new();
    for (stream, followed) in streams {
        clients.spawn(follow(stream, followed, opened.clone()));
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

/// Reads one stream to its end.
async fn follow(
    mut stream: Incoming,
    Followed { payment_id, .. }: Followed,
    opened: Arc<Semaphore>,
) -> Result<()> {
    let (mut text, mut version, mut is_terminal) = (String::new(), 0, false);
    while let Some(frame) = stream.frame().await {
        let frame = frame.with_context(|| format!("the stream of {payment_id}"))?;
        let Ok(data) = frame.into_data() else { continue };
        text.push_str(std::str::from_utf8(&data).context("a stream of events is text")?);
        while let Some(end) = text.find('\n') {
            let line = text[..end].trim_end();
            if let Some(id) = line.strip_prefix("id:") {
                let id: u64 = id.trim().parse().with_context(|| format!("the id {id} of an event"))?;
                ensure!(id > version, "the stream of {payment_id} repeats version {id}");
                if version == 0 {
                    opened.add_permits(1);
                }
                version = id;
            } else if let Some(document) = line.strip_prefix("data:") {
                is_terminal = document.contains(r#""status":"completed""#);
            }
            text.drain(..=end);
        }
    }
    ensure!(is_terminal, "the stream of {payment_id} ended after version {version}, before its payment");
    Ok(())
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
