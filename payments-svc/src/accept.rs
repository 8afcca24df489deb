//! Accepts payments, many in one commit.
//!
//! * Requests wait in a bounded queue while a flush runs. The next flush takes all of them.
//! * No delay is added: a lone request is committed at once, and under load many share a commit.
//! * A request is answered only after its row is committed.
//! * A failed flush answers 503 to each of its requests. A client repeats the request with the same key and gets the
//!   payment, if it was committed after all.
//!
//! * The idempotency key is looked up before the service: a payment accepted before is replayed even if the service was
//!   disabled since.
//! * A disabled or unknown service is refused here, with 422 and without a row: payments-svc owns that table, and a definite
//!   answer at once is better than a rejection later.

use std::time::{Duration, Instant};

use saga::postgres::Pool;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;
use crate::store::{self, Acceptance, NewPayment};

/// Requests per commit at most.
const FLUSH_MAX: usize = 500;
/// Waiting requests at most. Further ones are answered 503 at once.
const QUEUE_MAX: usize = 4096;
/// A request that waited longer is answered 503, since its client has likely given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

struct QueuedRequest {
    payment: NewPayment,
    since: Instant,
    answer: oneshot::Sender<Option<Acceptance>>,
}

/// Hands a payment to the flusher and waits for its commit.
#[derive(Clone)]
pub struct Acceptor {
    queue: mpsc::Sender<QueuedRequest>,
    metrics: Metrics,
}

impl Acceptor {
    /// Starts the flusher; it ends with the last clone of the acceptor.
    pub fn start(pool: Pool, ttl: Duration, metrics: Metrics) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(flush_all(pool, ttl, metrics.clone(), waiting));
        Self { queue, metrics }
    }

    /// Accepts one payment. `None` means that the outcome is not known: overload, no database, or an interrupted commit.
    pub async fn accept(&self, payment: NewPayment) -> Option<Acceptance> {
        let (answer, answered) = oneshot::channel();
        let waiting = QueuedRequest { payment, since: Instant::now(), answer };
        let accepted = match self.queue.try_send(waiting) {
            Ok(()) => {
                tokio::time::timeout(ANSWER_TIMEOUT, answered).await.ok().and_then(Result::ok).flatten()
            }
            Err(_) => None,
        };
        let outcome = match &accepted {
            Some(Acceptance::Created(_)) => "created",
            Some(Acceptance::Replayed(_)) => "replayed",
            Some(Acceptance::KeyReused { .. }) => "reused_key",
            Some(Acceptance::ServiceRefused) => "refused",
            None => "failed",
        };
        self.metrics.requests.with_label_values(&[outcome]).inc();
        accepted
    }
}

async fn flush_all(pool: Pool, ttl: Duration, metrics: Metrics, mut queue: mpsc::Receiver<QueuedRequest>) {
    let mut batch = Vec::with_capacity(FLUSH_MAX);
    while queue.recv_many(&mut batch, FLUSH_MAX).await > 0 {
        // A request whose client has given up is not inserted: nobody would receive the answer.
        batch.retain(|waiting: &QueuedRequest| !waiting.answer.is_closed());
        metrics.accept_batch.observe(batch.len() as f64);
        let (payments, waiting): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|w| (w.payment, (w.since, w.answer))).unzip();
        let outcomes: Vec<Option<Acceptance>> = match store::insert_payments(&pool, &payments, ttl).await {
            Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    requests = payments.len(),
                    "a batch of payments was not committed; its requests are answered 503"
                );
                payments.iter().map(|_| None).collect()
            }
        };
        for ((since, answer), outcome) in waiting.into_iter().zip(outcomes) {
            metrics.accept_seconds.observe(since.elapsed().as_secs_f64());
            // A closed receiver gave up meanwhile. Its payment is accepted; the same key returns it.
            let _ = answer.send(outcome);
        }
    }
}
