//! `bench waiters`: the cost of clients that follow their payments.
//!
//! 1. Streams: each of many clients follows a payment of its own on one listener, while the gateway is away. The figure is
//!    the growth of that process. Then the gateway is back, and each stream must end with its payment.
//! 2. Waits: open loops at one rate, by turns without and with many clients that wait (`?wait=`) at the edge for payments
//!    that do not end meanwhile. The figure is the processor time of the stack.
//! 3. The audit: figures of a system that lost a payment or a coin are not figures.

mod opener;
mod report;
mod streams;
mod waits;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use coroctl::audit;
use coroctl::client::Client;
use coroctl::stack::Stack;
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::caller::{AMOUNT, Address};
use super::closed::Load;
use super::cpu::Meter;
use super::endings::Endings;
use super::users::Users;
use report::Report;

/// Users that pay, and that follow.
const USERS: usize = 1000;
const REQUESTS_AT_ONCE: usize = 64;

#[derive(clap::Args)]
pub struct Options {
    /// Clients that follow a payment each by the stream of its events; 0 leaves that part out.
    #[arg(long, default_value_t = 10_000)]
    pub streams: usize,
    /// A connection of HTTP/1.1 for each of them, in the place of HTTP/2 as the edge speaks it.
    #[arg(long)]
    pub http1: bool,
    /// Clients that wait for a payment each by `?wait=`.
    #[arg(long, default_value_t = 1000)]
    pub waiters: usize,
    /// Payments per second of the load beside them.
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Turns without and turns with waiters; 0 leaves that part out.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A payment that somebody follows.
#[derive(Clone, Copy)]
struct Followed {
    user_id: Uuid,
    payment_id: Uuid,
}

/// Measures and prints; fails when a stream did not end with its payment or an invariant is broken.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    ensure!(options.rate > 0, "a rate is payments per second, at least 1");
    let meter = Meter::of_stack(Path::new(&stack.dir))?;
    let client = Client::new(stack)?;
    tracing::info!(users = USERS, "funding users");
    let users = Users::fund(&client, USERS, 0.0).await?;
    let streams = if options.streams > 0 {
        Some(streams::measure(stack, &client, &meter, &users, options.streams, options.http1).await?)
    } else {
        None
    };
    let brokers = stack.kafka_brokers.clone();
    let endings =
        tokio::task::spawn_blocking(move || Endings::follow(&brokers)).await.context("reader")??;
    let address = Address::new(&stack.payments_url, &stack.demo_service_id)?;
    let load = Load { address, users, endings: Arc::new(endings) };
    let turns = waits::measure(stack, &client, &meter, &load, options).await?;
    tracing::info!("audit");
    let report = Report::new(options, streams, &turns, &audit::run(stack).await?);
    report.print(options.json)?;
    report.audit.verdict()
}

/// Accepted payments of all users in turn.
async fn pay(client: &Client, users: &Users, client_number: &str, count: usize) -> Result<Vec<Followed>> {
    let payers = users.ids().iter().cycle().take(count).copied();
    let paid = stream::iter(payers).map(|user_id| async move {
        let payment_id = client.pay(user_id, client_number, AMOUNT).await?;
        anyhow::Ok(Followed { user_id, payment_id })
    });
    paid.buffer_unordered(REQUESTS_AT_ONCE).try_collect().await
}
