//! Reads payments for the clients that follow them, many in one statement.
//!
//! * Requests wait in a bounded queue while a read runs. The next read takes all of them.
//! * No delay is added: a lone request is read at once, and when thousands are woken together they share a statement.
//! * All of them use one connection, so those who pay, and the events, never wait for one behind those who look.
//! * A read begins after it was asked for: whoever is woken by a change sees that change.
//! * A failed read fails for each of its requests. Their clients ask again.
//! * A request about a user who is being moved to another shard comes again with the next read, and nobody waits for it.

use std::time::Duration;

use anyhow::{Context, anyhow};
use saga::shards::{Lanes, Router};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use crate::store::{self, Payment};

/// Payments per statement at most.
const READ_MAX: usize = 500;
/// A request that waited longer fails, since its client has likely given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the requests about users who are being moved come again.
const MOVING_INTERVAL: Duration = Duration::from_millis(20);

struct QueuedRead {
    user_id: Uuid,
    payment_id: Uuid,
    answer: oneshot::Sender<anyhow::Result<Option<Payment>>>,
}

/// Hands a read to the task that reads for all.
#[derive(Clone)]
pub struct Reader {
    lanes: Lanes<QueuedRead>,
}

impl Reader {
    /// Starts the task; it ends with the last clone of the reader.
    pub fn start(router: Router) -> Self {
        let of_tasks = router.clone();
        let start = move |waiting| drop(tokio::spawn(read_all(of_tasks.clone(), waiting)));
        Self { lanes: Lanes::new(router, READ_MAX, start) }
    }

    /// One payment of a user; `None` when the user has no such payment.
    ///
    /// # Errors
    /// When the database cannot be read within ten seconds.
    pub async fn payment(&self, user_id: Uuid, payment_id: Uuid) -> anyhow::Result<Option<Payment>> {
        let (answer, answered) = oneshot::channel();
        let read = async {
            let queued = self.lanes.of(user_id).send(QueuedRead { user_id, payment_id, answer }).await;
            queued.map_err(|_| anyhow!("the task that reads payments has ended"))?;
            answered.await.context("the task that reads payments has ended")?
        };
        tokio::time::timeout(ANSWER_TIMEOUT, read).await.context("the payment was not read in time")?
    }
}

async fn read_all(router: Router, mut queue: mpsc::Receiver<QueuedRead>) {
    let (mut batch, mut moving) = (Vec::with_capacity(READ_MAX), Vec::new());
    loop {
        let next = queue.recv_many(&mut batch, READ_MAX);
        let received = match moving.is_empty() {
            true => next.await,
            // Nothing received is no end of the queue then.
            false => timeout(MOVING_INTERVAL, next).await.unwrap_or(1),
        };
        if received == 0 {
            return;
        }
        batch.append(&mut moving);
        // A client that has gone needs no answer.
        batch.retain(|read: &QueuedRead| !read.answer.is_closed());
        moving = answer(&router, std::mem::take(&mut batch)).await;
    }
}

/// Answers the requests; returns those about users who are being moved.
async fn answer(router: &Router, batch: Vec<QueuedRead>) -> Vec<QueuedRead> {
    let users: Vec<Uuid> = batch.iter().map(|read| read.user_id).collect();
    let wanted: Vec<(Uuid, Uuid)> = batch.iter().map(|read| (read.user_id, read.payment_id)).collect();
    let wanted = &wanted;
    let read = |owned, items: Vec<usize>| async move {
        let wanted: Vec<(Uuid, Uuid)> = items.into_iter().map(|item| wanted[item]).collect();
        store::payments(&owned, &wanted).await
    };
    let mut moving = Vec::new();
    for (read, found) in batch.into_iter().zip(router.each(&users, read).await) {
        match found {
            // A closed receiver gave up meanwhile.
            Some(found) => drop(read.answer.send(found)),
            None => moving.push(read),
        }
    }
    moving
}
