//! Reads payments for the clients that follow them, many in one statement.
//!
//! * Requests wait in a bounded queue while a read runs. The next read takes all of them.
//! * No delay is added: a lone request is read at once, and when thousands are woken together they share a statement.
//! * All of them use one connection, so those who pay, and the events, never wait for one behind those who look.
//! * A read begins after it was asked for: whoever is woken by a change sees that change.
//! * A failed read fails for each of its requests. Their clients ask again.

use std::time::Duration;

use anyhow::{Context, anyhow};
use saga::postgres::Pool;
use saga::telemetry::log_text;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::store::{self, Payment};

/// Payments per statement at most.
const READ_MAX: usize = 500;
/// A request that waited longer fails, since its client has likely given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

struct QueuedRead {
    user_id: Uuid,
    payment_id: Uuid,
    answer: oneshot::Sender<anyhow::Result<Option<Payment>>>,
}

/// Hands a read to the task that reads for all.
#[derive(Clone)]
pub struct Reader {
    queue: mpsc::Sender<QueuedRead>,
}

impl Reader {
    /// Starts the task; it ends with the last clone of the reader.
    pub fn start(pool: Pool) -> Self {
        let (queue, waiting) = mpsc::channel(READ_MAX);
        tokio::spawn(read_all(pool, waiting));
        Self { queue }
    }

    /// One payment of a user; `None` when the user has no such payment.
    ///
    /// # Errors
    /// When the database cannot be read within ten seconds.
    pub async fn payment(&self, user_id: Uuid, payment_id: Uuid) -> anyhow::Result<Option<Payment>> {
        let (answer, answered) = oneshot::channel();
        let read = async {
            let queued = self.queue.send(QueuedRead { user_id, payment_id, answer }).await;
            queued.map_err(|_| anyhow!("the task that reads payments has ended"))?;
            answered.await.context("the task that reads payments has ended")?
        };
        tokio::time::timeout(ANSWER_TIMEOUT, read).await.context("the payment was not read in time")?
    }
}

async fn read_all(pool: Pool, mut queue: mpsc::Receiver<QueuedRead>) {
    let mut batch = Vec::with_capacity(READ_MAX);
    while queue.recv_many(&mut batch, READ_MAX).await > 0 {
        // A client that has gone needs no answer.
        batch.retain(|read: &QueuedRead| !read.answer.is_closed());
        let wanted: Vec<(Uuid, Uuid)> = batch.iter().map(|read| (read.user_id, read.payment_id)).collect();
        let found = store::payments(&pool, &wanted).await.map_err(|error| log_text(&error));
        for (nth, read) in batch.drain(..).enumerate() {
            let payment = match &found {
                Ok(payments) => Ok(payments.get(nth).cloned().flatten()),
                Err(error) => Err(anyhow!(error.clone())),
            };
            // A closed receiver gave up meanwhile.
            let _gone = read.answer.send(payment);
        }
    }
}
