//! Delivers what is due.
//!
//! * An instance claims no more than it can deliver at once, and per channel no more than its share. So what it has in
//!   memory is under way, and a killed instance leaves leases behind that others take over.
//! * An endpoint that fails has one delivery at a time, and a quarter of all deliveries is kept for channels that have
//!   none and do not fail. So endpoints that hang, however many they are, hold up no other channel for longer than it
//!   takes to see that they fail.
//! * It sleeps until the next row is due, or until an event, an operator or a finished delivery wakes it. A look every
//!   five seconds finds what another instance left due.
//! * Results are recorded together. While the database is away they are kept and tried again; an attempt whose lease
//!   lapses meanwhile is repeated under the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mailer::Mailer;
use saga::CancellationToken;
use saga::backoff;
use saga::postgres::Pool;
use saga::telemetry::log_text;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use webhook::{Message, WebhookClient};

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::render;
use crate::saga::{Answer, Step, decide};
use crate::store::{self, AttemptRecord, Claim, ClaimedNotification, Endpoint};

/// The pause of an idle instance, and the least between two looks.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(50);
const DATABASE_PAUSE_MAX: Duration = Duration::from_secs(2);
/// The interval of the gauge of the oldest due notification.
const MEASURE_INTERVAL: Duration = Duration::from_secs(15);
/// The part of the deliveries that is kept for channels that have nothing under way and do not fail: a quarter.
const KEPT_DIVISOR: u16 = 4;

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
    tasks: JoinSet<(ClaimedNotification, Answer)>,
    busy: HashMap<String, i32>,
}

type AttemptOutcome = Result<(ClaimedNotification, Answer), JoinError>;

impl Dispatcher {
    /// Runs until shutdown, then waits for what is under way, as long as a webhook may take. An e-mail that takes
    /// longer is dropped, and delivered by another instance after its lease.
    ///
    /// # Errors
    /// When a delivery panicked: the process ends, and its deliveries are repeated. Every other failure is tried again.
    pub async fn run(self: Arc<Self>) -> anyhow::Result<()> {
        let mut under_way = UnderWay::default();
        let mut measure = tokio::time::interval(MEASURE_INTERVAL);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shutdown.is_cancelled() {
            let pause = self.begin(&mut under_way).await?;
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = self.due.notified() => {}
                () = tokio::time::sleep(pause) => {}
                _ = measure.tick() => self.measure().await,
                Some(first) = under_way.tasks.join_next() => self.finish(&mut under_way, first).await?,
            }
        }
        let end = Instant::now() + self.limits.attempt_s;
        while let Ok(Some(first)) = timeout_at(end, under_way.tasks.join_next()).await {
            self.finish(&mut under_way, first).await?;
        }
        Ok(())
    }

    async fn measure(&self) {
        match store::oldest_due(&self.pool, self.mailer.is_some()).await {
            Ok([email, webhook]) => {
                self.metrics.oldest_due.with_label_values(&["email"]).set(email.as_secs_f64());
                self.metrics.oldest_due.with_label_values(&["webhook"]).set(webhook.as_secs_f64());
            }
            Err(error) => tracing::warn!(error = log_text(&error), "the oldest notification cannot be read"),
        }
    }

    /// Claims and begins what is due; returns when to look again.
    async fn begin(self: &Arc<Self>, under_way: &mut UnderWay) -> anyhow::Result<Duration> {
        let Limits { deliveries_max, channel_max, attempt_s, mail_attempt_s, lease_grace_s, .. } =
            self.limits;
        let free = i64::from(deliveries_max) - i64::try_from(under_way.tasks.len())?;
        if free == 0 {
            // A finished delivery wakes it.
            return Ok(LOOK_INTERVAL_MAX);
        }
        let claim = Claim {
            email: self.mailer.is_some(),
            count: free,
            kept: (deliveries_max / KEPT_DIVISOR).into(),
            per_channel: channel_max.into(),
            busy: &under_way.busy,
            leases: [mail_attempt_s + lease_grace_s, attempt_s + lease_grace_s],
        };
        let work = || self.claim(&claim);
        let claimed =
            backoff::until_done(DATABASE_PAUSE_MAX, &self.shutdown, "notifications cannot be claimed", work)
                .await;
        let Some((claimed, next)) = claimed else { return Ok(LOOK_INTERVAL_MAX) };
        for claimed in claimed {
            *under_way.busy.entry(claimed.channel.clone()).or_default() += 1;
            under_way.tasks.spawn(self.clone().deliver(claimed));
        }
        self.metrics.under_way.set(i64::try_from(under_way.tasks.len())?);
        Ok(next.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX))
    }

    /// Claims what is due; returns it, and how long nothing more is.
    async fn claim(&self, claim: &Claim<'_>) -> anyhow::Result<(Vec<ClaimedNotification>, Duration)> {
        let claimed = store::claim(&self.pool, claim).await?;
        if claimed.is_empty() {
            let next = store::next_due(&self.pool, claim).await?;
            return Ok((claimed, next.unwrap_or(LOOK_INTERVAL_MAX)));
        }
        // More may be due.
        Ok((claimed, Duration::ZERO))
    }

    /// Records the first finished delivery, and all that have finished with it.
    async fn finish(&self, under_way: &mut UnderWay, first: AttemptOutcome) -> anyhow::Result<()> {
        let (mut records, mut next) = (Vec::new(), Some(first));
        while let Some(outcome) = next {
            let (claimed, answer) = outcome.context("a delivery panicked")?;
            under_way.busy.entry(claimed.channel.clone()).and_modify(|count| *count -= 1);
            records.push(self.decide(claimed, answer));
            next = under_way.tasks.try_join_next();
        }
        under_way.busy.retain(|_, count| *count > 0);
        self.metrics.under_way.set(i64::try_from(under_way.tasks.len())?);
        self.record(&records).await;
        Ok(())
    }

    fn decide(&self, claimed: ClaimedNotification, answer: Answer) -> AttemptRecord {
        let ClaimedNotification { end, channel, attempts, endpoint, .. } = claimed;
        let (payment_id, error) = (end.payment.payment_id, answer.error());
        let step = decide(answer, attempts, &self.limits.retries_s, rand::random());
        let kind = if endpoint.is_some() { "webhook" } else { "email" };
        self.metrics.attempts.with_label_values(&[kind, step.into()]).inc();
        if step == Step::GiveUp {
            tracing::warn!(%payment_id, channel, error, "a notification is given up; replay makes it due again");
        }
        // After `Disable` it is due as soon as the endpoint is enabled.
        let pause = if let Step::Retry(pause) = step { pause.as_secs_f64() } else { 0.0 };
        let revision = endpoint.map(|endpoint| endpoint.revision);
        AttemptRecord { payment_id, channel, attempts, revision, step: step.into(), pause, error }
    }

    async fn record(&self, records: &[AttemptRecord]) {
        let work = || store::record(&self.pool, records, self.limits.disable_after_s);
        // After a stop an attempt that is not recorded is repeated.
        let disabled =
            backoff::until_done(DATABASE_PAUSE_MAX, &self.shutdown, "results cannot be recorded", work)
                .await
                .unwrap_or_default();
        self.metrics.disabled.inc_by(disabled.len() as u64);
        for channel in disabled {
            tracing::error!(channel, "an endpoint is disabled until an operator enables it");
        }
    }

    async fn deliver(self: Arc<Self>, claimed: ClaimedNotification) -> (ClaimedNotification, Answer) {
        let Limits { attempt_s, mail_attempt_s, .. } = self.limits;
        let time = if claimed.endpoint.is_some() { attempt_s } else { mail_attempt_s };
        let answer = tokio::time::timeout(time, self.send(&claimed)).await;
        (claimed, answer.unwrap_or(Answer::NoAnswer("timed out")))
    }

    async fn send(&self, ClaimedNotification { end, email, endpoint, .. }: &ClaimedNotification) -> Answer {
        let id = end.message_id();
        match (endpoint, email, &self.mailer) {
            (Some(Endpoint { url, secrets, .. }), _, _) => {
                let Ok(body) = render::webhook(end) else { return Answer::NoAnswer("not rendered") };
                self.webhooks.post(url, &Message { id: &id, secrets, body }).await.into()
            }
            (None, Some(address), Some(mailer)) => mailer.send(address, &id, render::email(end)).await.into(),
            (None, None, _) => Answer::NoRecipient,
            // Without an SMTP server the channel is not claimed.
            (None, Some(_), None) => Answer::NoAnswer("no SMTP server"),
        }
    }
}
