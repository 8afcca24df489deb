//! The clients of a run: each repeats its request until it is accepted; some send it twice at once, some cancel.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::plan::{DEPOSIT, Plan, PlannedPayment};
use crate::retrying_client::{RetryCounters, RetryingClient};
use coroctl::client::{Client, order};

/// Clients that ask at the same time: while nothing is accepted they keep asking, and no more join them.
const CLIENTS: usize = 64;
const DEPOSITS_AT_ONCE: usize = 16;

pub struct Load {
    pub client: Client,
    pub service_id: String,
    pub plan: Plan,
    pub users: Vec<Uuid>,
    pub retries: RetryCounters,
    /// How many payments have been accepted.
    pub accepted: watch::Sender<usize>,
}

/// The idempotency key of the payment at an index, and the way back.
pub fn key(index: usize) -> String {
    format!("payment {index}")
}

pub fn index(key: &str) -> Option<usize> {
    key.strip_prefix("payment ")?.parse().ok()
}

/// New users with money, and with an address where the stack has a notifier: so D2 has something to compare.
pub async fn fund(client: &Client, users: usize) -> Result<Vec<Uuid>> {
    let made = stream::iter(0..users).map(async |_| {
        let user_id = client.user_with(DEPOSIT).await?;
        client.contact(user_id).await?;
        anyhow::Ok(user_id)
    });
    made.buffer_unordered(DEPOSITS_AT_ONCE).try_collect().await.context("a user could not be made")
}

impl Load {
    /// Requests `rate` payments per second, or fewer while they are not accepted; returns the id of each.
    pub async fn run(self: Arc<Self>, rate: f64) -> Result<Vec<Uuid>> {
        let mut moments = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        moments.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let clients = Arc::new(Semaphore::new(CLIENTS));
        let mut asking = JoinSet::new();
        for index in 0..self.plan.payments {
            moments.tick().await;
            let client = clients.clone().acquire_owned().await?;
            let load = self.clone();
            asking.spawn(async move {
                let payment_id = load.pay(index).await.with_context(|| key(index))?;
                drop(client);
                anyhow::Ok((index, payment_id))
            });
        }
        let mut ids = vec![Uuid::nil(); self.plan.payments];
        while let Some(asked) = asking.join_next().await {
            let (index, payment_id) = asked.context("client")??;
            ids[index] = payment_id;
        }
        Ok(ids)
    }

    async fn pay(&self, index: usize) -> Result<Uuid> {
        let planned = self.plan.payment(index);
        let PlannedPayment { user, client_number, amount, twice, .. } = &planned;
        let user_id = self.users[*user];
        let body = order(client_number, &self.service_id, *amount, &key(index));
        let client = RetryingClient { client: &self.client, retries: &self.retries };
        let accepted = if *twice {
            let (one, other) = tokio::try_join!(client.pay(user_id, &body), client.pay(user_id, &body))?;
            ensure!(
                one == other,
                "two requests with one key were answered differently: {one:?} and {other:?}"
            );
            one
        } else {
            client.pay(user_id, &body).await?
        };
        self.accepted.send_modify(|count| *count += 1);
        if planned.is_cancelled() {
            client.cancel(user_id, accepted.payment_id).await?;
        }
        Ok(accepted.payment_id)
    }
}
