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
//! * A request of a user who is being moved to another shard waits for the next flush, and nobody waits for it.
//! * While new payments are refused (`shedding`), only keys are looked up: one statement for all that wait, as ever.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use saga::shards::{Lanes, Router};
use saga::telemetry::log_text;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::shedding::{Admission, Shedding};
use crate::store::{self, Acceptance, NewPayment};

/// Requests per commit at most.
const FLUSH_MAX: usize = 500;
/// Waiting requests at most. Further ones are answered 503 at once.
const QUEUE_MAX: usize = 4096;
/// A request that waited longer is answered 503, since its client has likely given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the requests of users who are being moved come again.
const MOVING_INTERVAL: Duration = Duration::from_millis(20);

struct QueuedRequest {
    payment: NewPayment,
    admission: Admission,
    since: Instant,
    answer: oneshot::Sender<Option<Acceptance>>,
}

/// Hands a payment to the flusher and waits for its commit.
#[derive(Clone)]
pub struct Acceptor {
    lanes: Lanes<QueuedRequest>,
    shedding: Shedding,
    metrics: Metrics,
}

impl Acceptor {
    /// Each shard has a flusher. They end with the last clone of the acceptor.
    pub fn start(router: Router, ttl: Duration, shedding: Shedding, metrics: Metrics) -> Self {
        let flusher =
            Flusher { router: router.clone(), ttl, shedding: shedding.clone(), metrics: metrics.clone() };
        let start = move |waiting| drop(tokio::spawn(flusher.clone().flush_all(waiting)));
        Self { lanes: Lanes::new(router, QUEUE_MAX, start), shedding, metrics }
    }

    /// Accepts one payment. `None` means that the outcome is not known: overload, no database, or an interrupted commit.
    pub async fn accept(&self, payment: NewPayment) -> Option<Acceptance> {
        let (answer, answered) = oneshot::channel();
        let admission = self.shedding.admission();
        let since = Instant::now();
        let waiting = QueuedRequest { payment, admission, since, answer };
        let accepted = match self.lanes.of(waiting.payment.user_id).try_send(waiting) {
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
            Some(Acceptance::Shed) => "shed",
            None => "failed",
        };
        self.metrics.requests.with_label_values(&[outcome]).inc();
        self.metrics.weight.observe(since.elapsed(), accepted.is_some());
        accepted
    }
}

/// Commits the requests that wait.
#[derive(Clone)]
struct Flusher {
    router: Router,
    ttl: Duration,
    shedding: Shedding,
    metrics: Metrics,
}

impl Flusher {
    async fn flush_all(self, mut queue: mpsc::Receiver<QueuedRequest>) {
        let (mut batch, mut moving) = (Vec::with_capacity(FLUSH_MAX), Vec::new());
        loop {
            let next = queue.recv_many(&mut batch, FLUSH_MAX);
            let received = match moving.is_empty() {
                true => next.await,
                // Nothing received is no end of the queue then.
                false => timeout(MOVING_INTERVAL, next).await.unwrap_or(1),
            };
            if received == 0 {
                return;
            }
            batch.append(&mut moving);
            // A request whose client has given up is not inserted: nobody would receive the answer.
            batch.retain(|waiting: &QueuedRequest| !waiting.answer.is_closed());
            self.metrics.accept_batch.observe(batch.len() as f64);
            let (shed, admitted) = batch.drain(..).partition(|waiting| waiting.admission == Admission::Shed);
            moving = self.flush(admitted, Admission::Accept).await;
            moving.extend(self.flush(shed, Admission::Shed).await);
            // The queue is bounded, and what left it and waits is too: the rest is answered 503.
            moving.truncate(QUEUE_MAX);
        }
    }

    /// Answers requests of which all were admitted, or none; returns those of users who are being moved.
    async fn flush(&self, batch: Vec<QueuedRequest>, admission: Admission) -> Vec<QueuedRequest> {
        if batch.is_empty() {
            return Vec::new();
        }
        let users: Vec<Uuid> = batch.iter().map(|waiting| waiting.payment.user_id).collect();
        let (payments, waiting): (Vec<NewPayment>, Vec<_>) =
            batch.into_iter().map(|w| (w.payment, (w.since, w.answer))).unzip();
        let all = payments.as_slice();
        let insert = |owned, items: Vec<usize>| async move {
            let payments = part(all, &items);
            match admission {
                Admission::Accept => store::insert_payments(&owned, &payments, self.ttl).await,
                Admission::Shed => store::earlier_payments(&owned, &payments).await,
            }
        };
        let outcomes = self.router.each(&users, insert).await;
        if let Some(error) = outcomes.iter().flatten().find_map(|outcome| outcome.as_ref().err()) {
            tracing::warn!(
                error = log_text(error),
                requests = outcomes.iter().flatten().filter(|outcome| outcome.is_err()).count(),
                "a batch of payments was not committed; its requests are answered 503"
            );
        }
        let mut moving = Vec::new();
        for ((payment, (since, answer)), outcome) in payments.into_iter().zip(waiting).zip(outcomes) {
            match outcome {
                Some(outcome) => self.answer(since, answer, outcome.ok()),
                None => moving.push(QueuedRequest { payment, admission, since, answer }),
            }
        }
        moving
    }

    fn answer(
        &self,
        since: Instant,
        answer: oneshot::Sender<Option<Acceptance>>,
        outcome: Option<Acceptance>,
    ) {
        self.metrics.accept_seconds.observe(since.elapsed().as_secs_f64());
        if let Some(Acceptance::Created(accepted)) = &outcome {
            self.metrics.settling.accepted.inc();
            self.shedding.accepted(accepted.user_id, accepted.payment_id);
        }
        // A closed receiver gave up meanwhile. Its payment is accepted; the same key returns it.
        let _ = answer.send(outcome);
    }
}

/// The payments of one shard, which nearly always are all of them.
fn part<'a>(payments: &'a [NewPayment], items: &[usize]) -> Cow<'a, [NewPayment]> {
    if items.len() == payments.len() {
        return Cow::Borrowed(payments);
    }
    items.iter().map(|&item| payments[item].clone()).collect()
}
