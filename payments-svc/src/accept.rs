//! Accepting payments, many in one commit.
//!
//! Requests wait in a bounded queue while a flush is under way; the next flush takes all that came. No delay
//! is ever added: a lone request is committed at once, and under load a commit is shared by many.
//! A request is answered only after its row is committed. A failed flush answers 503 to each of its
//! requests, and a client that repeats one with its key learns what became of it.

use std::time::{Duration, Instant};

use saga::postgres::Pool;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;
use crate::store::{self, Accepted, NewPayment};

/// Requests per commit at most.
const FLUSH_MAX: usize = 500;
/// Requests that may wait; more are answered 503 at once.
const QUEUE_MAX: usize = 4096;
/// A request that waited longer is answered 503: its client has likely given up.
const ANSWER_MAX: Duration = Duration::from_secs(10);

struct Waiting {
    payment: NewPayment,
    since: Instant,
    answer: oneshot::Sender<Option<Accepted>>,
}

/// The entrance: hands a payment to the flusher and waits for its commit.
#[derive(Clone)]
pub struct Acceptor {
    queue: mpsc::Sender<Waiting>,
    metrics: Metrics,
}

impl Acceptor {
    /// Starts the flusher; it ends with the last clone of the acceptor.
    pub fn start(pool: Pool, ttl: Duration, metrics: Metrics) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(flush_all(pool, ttl, metrics.clone(), waiting));
        Self { queue, metrics }
    }

    /// `None` when the service cannot tell: overload, no database, or a commit whose outcome is not known.
    pub async fn accept(&self, payment: NewPayment) -> Option<Accepted> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { payment, since: Instant::now(), answer };
        let accepted = match self.queue.try_send(waiting) {
            Ok(()) => tokio::time::timeout(ANSWER_MAX, answered).await.ok().and_then(Result::ok).flatten(),
            Err(_) => None,
        };
        let outcome = match &accepted {
            Some(Accepted::Created(_)) => "created",
            Some(Accepted::Replayed(_)) => "replayed",
            Some(Accepted::KeyReused) => "reused_key",
            Some(Accepted::ServiceRefused) => "refused",
            None => "failed",
        };
        self.metrics.requests.with_label_values(&[outcome]).inc();
        accepted
    }
}

async fn flush_all(pool: Pool, ttl: Duration, metrics: Metrics, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(FLUSH_MAX);
    while queue.recv_many(&mut batch, FLUSH_MAX).await > 0 {
        // Whoever has given up is not inserted: nobody would hear that it was accepted.
        batch.retain(|waiting: &Waiting| !waiting.answer.is_closed());
        metrics.accept_batch.observe(batch.len() as f64);
        let (payments, waiting): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|w| (w.payment, (w.since, w.answer))).unzip();
        let outcomes: Vec<Option<Accepted>> = match store::insert_payments(&pool, &payments, ttl).await {
            Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    requests = payments.len(),
                    "payments not accepted"
                );
                payments.iter().map(|_| None).collect()
            }
        };
        for ((since, answer), outcome) in waiting.into_iter().zip(outcomes) {
            metrics.accept_seconds.observe(since.elapsed().as_secs_f64());
            // A closed receiver gave up meanwhile; its payment goes its way and can be asked for by key.
            let _ = answer.send(outcome);
        }
    }
}
