//! Clients that wait for payments at the edge, beside a load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::client::Client;
use coroctl::stack::Stack;
use rand::Rng;
use reqwest::StatusCode;
use saga::http_client;
use tokio::task::JoinSet;

use super::{Followed, Options, pay};
use crate::bench::closed::Load;
use crate::bench::cpu::Meter;
use crate::bench::open::{self, OpenLoop};

/// The longest `wait`.
const WAIT_MS: u64 = 25_000;
/// The time of a turn besides its load: connections are made, the last payments end.
const TURN_OVERHEAD: Duration = Duration::from_secs(6);
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// One turn.
pub struct Turn {
    pub has_waiters: bool,
    pub load: OpenLoop,
}

/// Turns without and with waiters, in changing order.
pub async fn measure(
    stack: &Stack,
    client: &Client,
    meter: &Meter,
    load: &Load,
    options: &Options,
) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
    if options.rounds == 0 {
        return Ok(turns);
    }
    let time = Duration::from_secs(options.seconds);
    tracing::info!(waiters = options.waiters, "paying what does not end meanwhile");
    let pending = (time + TURN_OVERHEAD) * 2 * u32::try_from(options.rounds)? + TURN_OVERHEAD * 4;
    let client_number = format!("0812-soft{}", pending.as_millis());
    let payments = pay(client, &load.users, &client_number, options.waiters).await?;
    for round in 0..options.rounds {
        for has_waiters in [round % 2 == 1, round % 2 == 0] {
            tracing::info!(round = round + 1, of = options.rounds, has_waiters, "open loop");
            let mut waiters = JoinSet::new();
            if has_waiters {
                wait(stack, &payments, &mut waiters)?;
            }
            let load = tokio::select! {
                load = open::run(load, meter, options.rate, time) => load?,
                Some(ended) = waiters.join_next(), if has_waiters => {
                    ended.context("waiter")??;
                    anyhow::bail!("a waiter has ended before the load");
                }
            };
            waiters.shutdown().await;
            turns.push(Turn { has_waiters, load });
        }
    }
    tracing::info!("waiting for the end of all payments");
    for Followed { user_id, payment_id } in payments {
        client.wait_for_end(user_id, payment_id, pending + END_TIMEOUT).await?;
    }
    Ok(turns)
}

/// Each client waits again and again. The first wait is shorter, so that not all end together.
fn wait(stack: &Stack, payments: &[Followed], waiters: &mut JoinSet<Result<()>>) -> Result<()> {
    let http = http_client::builder().timeout(Duration::from_millis(2 * WAIT_MS)).build()?;
    let mut random = rand::rng();
    for Followed { user_id, payment_id } in payments {
        let url = format!("{}/payments/{payment_id}", stack.edge_url);
        let (http, user_id) = (http.clone(), user_id.to_string());
        let mut wait_ms = random.random_range(1..=WAIT_MS);
        waiters.spawn(async move {
            loop {
                let request = http.get(format!("{url}?wait={wait_ms}")).header("x-user-id", &user_id);
                let answer = request.send().await.context("GET /payments/{id}?wait=")?;
                ensure!(answer.status() == StatusCode::OK, "a waiter was answered {}", answer.status());
                answer.bytes().await.context("the answer to a waiter")?;
                wait_ms = WAIT_MS;
            }
        });
    }
    Ok(())
}
