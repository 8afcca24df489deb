//! Delivers what is due.
//!
//! * An instance claims no more than it can deliver at once, and per channel no more than its share. So what it has in
//!   memory is under way, and a killed instance leaves leases behind that others take over.
//! * It sleeps until the next row is due, or until an event, an operator or a finished delivery wakes it. A look every five
//!   seconds finds what another instance left due.
//! * Results are recorded together. While the database is away they are kept and tried again; an attempt whose lease lapses
//!   meanwhile is repeated under the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use saga::CancellationToken;
use saga::backoff;
use saga::postgres::Pool;
use saga::telemetry::log_text;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use webhook::{Message, WebhookClient};

use crate::config::Limits;
use crate::email::Mailer;
use crate::metrics::Metrics;
use crate::render;
use crate::saga::{Answer, Step, decide};
use crate::store::{self, Claim, Due, Outcome};

/// The pause of an idle instance, and the least between two looks.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(50);
const DATABASE_PAUSE_MAX: Duration = Duration::from_secs(2);

pub struct Dispatcher {
    pub pool: Pool,
    pub webhooks: WebhookClient,
    pub mailer: Option<Mailer>,
    pub limits: Limits,
    /// Notified when rows may have become due.
    pub due: Arc<Notify>,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

/// The deliveries under way, and their number by channel.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<(Due, Answer)>,
    busy: HashMap<String, i32>,
}

type Finished = Result<(Due, Answer), JoinError>;

impl Dispatcher {
    /// Runs until shutdown, then waits for what is under way, an attempt's time at most.
    ///
    /// # Errors
    /// When a delivery panicked: the process ends, and its deliveries are repeated. Every other failure is tried again.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut under_way = UnderWay::default();
        let mut pauses = backoff::unlimited(DATABASE_PAUSE_MAX);
        while !self.shutdown.is_cancelled() {
            let pause = match self.begin(&mut under_way).await {
                Ok(pause) => {
                    pauses = backoff::unlimited(DATABASE_PAUSE_MAX);
                    pause
                }
                Err(error) => {
                    tracing::warn!(error = log_text(&error), "notifications cannot be claimed; tried again");
                    pauses.next().unwrap_or(DATABASE_PAUSE_MAX)
                }
            };
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = self.due.notified() => {}
                () = tokio::time::sleep(pause) => {}
                Some(first) = under_way.tasks.join_next() => self.finish(&mut under_way, first).await?,
            }
        }
        while let Some(first) = under_way.tasks.join_next().await {
            self.finish(&mut under_way, first).await?;
        }
        Ok(())
    }

    /// Claims and begins what is due; returns when to look again.
    async fn begin(&self, under_way: &mut UnderWay) -> anyhow::Result<Duration> {
        let free = i64::from(self.limits.deliveries_max) - i64::try_from(under_way.tasks.len())?;
        if free == 0 {
            // A finished delivery wakes it.
            return Ok(LOOK_INTERVAL_MAX);
        }
        let per_channel = self.limits.channel_max.into();
        let claim = Claim { email: self.mailer.is_some(), count: free, per_channel, busy: &under_way.busy };
        let claimed = store::claim(&self.pool, &claim, self.limits.lease()).await?;
        if claimed.is_empty() {
            let next = store::next_due(&self.pool, &claim).await?.unwrap_or(LOOK_INTERVAL_MAX);
            return Ok(next.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX));
        }
        for due in claimed {
            *under_way.busy.entry(due.channel.clone()).or_default() += 1;
            let (webhooks, mailer) = (self.webhooks.clone(), self.mailer.clone());
            under_way.tasks.spawn(deliver(due, webhooks, mailer, self.limits.attempt_s));
        }
        self.metrics.under_way.set(i64::try_from(under_way.tasks.len())?);
        // More may be due.
        Ok(LOOK_INTERVAL_MIN)
    }

    /// Records the first finished delivery, and all that have finished with it.
    async fn finish(&self, under_way: &mut UnderWay, first: Finished) -> anyhow::Result<()> {
        let (mut outcomes, mut next) = (Vec::new(), Some(first));
        while let Some(finished) = next {
            let (due, answer) = finished.context("a delivery panicked")?;
            under_way.busy.entry(due.channel.clone()).and_modify(|count| *count -= 1);
            outcomes.push(self.outcome(due, answer));
            next = under_way.tasks.try_join_next();
        }
        under_way.busy.retain(|_, count| *count > 0);
        self.metrics.under_way.set(i64::try_from(under_way.tasks.len())?);
        self.record(&outcomes).await;
        Ok(())
    }

    fn outcome(&self, due: Due, answer: Answer) -> Outcome {
        let step = decide(answer, due.attempts, &self.limits.retries_s, rand::random());
        let error = answer.error();
        let kind = if due.endpoint.is_some() { "webhook" } else { "email" };
        self.metrics.attempts.with_label_values(&[kind, step.into()]).inc();
        if step == Step::GiveUp {
            let (payment_id, channel) = (due.ended.payment_id, &due.channel);
            tracing::warn!(%payment_id, channel, error, "a notification is given up; replay makes it due again");
        }
        Outcome::new(due, step, error)
    }

    async fn record(&self, outcomes: &[Outcome]) {
        for pause in backoff::unlimited(DATABASE_PAUSE_MAX) {
            let error = match store::record(&self.pool, outcomes, self.limits.disable_after_s).await {
                Ok(disabled) => {
                    self.metrics.disabled.inc_by(disabled.len() as u64);
                    for channel in disabled {
                        tracing::error!(channel, "an endpoint is disabled until an operator enables it");
                    }
                    return;
                }
                Err(error) => log_text(&error),
            };
            tracing::warn!(error, "results cannot be recorded; tried again, and repeated after a stop");
            if self.shutdown.is_cancelled() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

async fn deliver(due: Due, webhooks: WebhookClient, mailer: Option<Mailer>, time: Duration) -> (Due, Answer) {
    let attempt = async {
        match (&due.endpoint, &due.email, &mailer) {
            (Some(endpoint), _, _) => {
                let (id, body) = (due.ended.message_id(), render::webhook(&due.ended));
                let message = Message { id: &id, secret: &endpoint.secret, body };
                webhooks.post(&endpoint.url, &message).await.into()
            }
            (None, Some(address), Some(mailer)) => mailer.send(address, &due.ended).await,
            (None, None, _) => Answer::NoRecipient,
            // Without an SMTP server the channel is not claimed.
            (None, Some(_), None) => Answer::NoAnswer("no SMTP server"),
        }
    };
    let answer = tokio::time::timeout(time, attempt).await.unwrap_or(Answer::NoAnswer("timed out"));
    (due, answer)
}
