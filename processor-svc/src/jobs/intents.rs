//! Commits deliveries as intents, acknowledges them, and begins their calls.
//!
//! * A message is acknowledged after its row is committed: the row is the work.
//! * A message that cannot be read is parked in the same transaction.
//! * A charge that may not be called now gets a row that waits: the breaker of its service is open, or its user or service
//!   has its full share. Nothing was attempted then.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::types::AMQPValue;
use saga::parked::Parked;
use saga::telemetry::log_text;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Jobs, SHARE_RETRY_INTERVAL, bounded};
use crate::breaker::{Pass, Refusal};
use crate::calls::{Attempt, CallRight, Permit};
use crate::cause::Cause;
use crate::charge::{CONFLICT, Charge};
use crate::failpoints::{Failpoint, hit};
use crate::metrics::Metrics;
use crate::retry::{Stop, until_done};
use crate::shares::Share;
use crate::store::{Admission, HoldBack, Intent};
use crate::work::{self, Job, Message};

/// A readable message: its job, and the message for parking.
struct WorkItem {
    job: Job,
    message: Message,
}

/// A work item, with the right to call now, or the reason to hold it back.
struct Candidate {
    item: WorkItem,
    right: Result<Clearance, HoldBack>,
}

/// A pass of the breaker, and a share.
struct Clearance {
    pass: Pass,
    share: Share,
}

/// Minimum pause of a charge that a breaker refuses.
const REFUSED_PAUSE_MIN: Duration = Duration::from_millis(50);

impl Jobs {
    /// Commits the deliveries, acknowledges them, and begins the calls.
    pub(super) async fn batch(
        &self,
        channel: &Channel,
        deliveries: Vec<Delivery>,
        permits: &mut OwnedSemaphorePermit,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(last) = deliveries.last().map(|delivery| delivery.delivery_tag) else { return Ok(()) };
        let (items, unreadable) = self.read(deliveries);
        let items = self.not_ended(items).await;
        let begun = Instant::now();
        hit(Failpoint::BeforeIntent);
        let candidates = items.into_iter().map(|item| self.candidate(item)).collect();
        let Ok(jobs) = self.admit(candidates, unreadable, shutdown).await else {
            // Shutdown began while the database is away: nothing is committed, and everything is delivered again.
            return Ok(());
        };
        hit(Failpoint::AfterIntent);
        // Batches are committed one after the other, so everything up to this tag is committed.
        let acknowledging = channel.basic_ack(last, BasicAckOptions { multiple: true });
        let acknowledged = bounded("acknowledge", acknowledging).await;
        hit(Failpoint::AfterAck);
        for (job, Clearance { pass, share }) in jobs {
            match permits.split(1) {
                Some(room) => {
                    let permit = Permit { room, share: Some(share) };
                    let attempt = Attempt { number: 1, exposed: false, taken_at: begun };
                    self.calls.start(job.charge, attempt, CallRight { permit, pass });
                }
                // There are never more jobs than permits. Without one, the sweeper finds the lapsed lease.
                None => {
                    tracing::error!(payment_id = %job.charge.payment_id, "a charge has no permit and is not called; the sweeper takes it over when its lease lapses");
                }
            }
        }
        acknowledged
    }

    /// Reads deliveries: one work item per payment, and the parked messages of the others.
    fn read(&self, deliveries: Vec<Delivery>) -> (Vec<WorkItem>, Vec<Parked>) {
        let (mut items, mut unreadable) = (Vec::with_capacity(deliveries.len()), Vec::new());
        let mut at: HashMap<Uuid, usize> = HashMap::with_capacity(deliveries.len());
        for delivery in deliveries {
            let message = message(delivery);
            match work::read(&message) {
                Err(reason) => unreadable.push(self.parked(&message, &reason)),
                Ok(job) => match at.get(&job.charge.payment_id) {
                    None => {
                        at.insert(job.charge.payment_id, items.len());
                        items.push(WorkItem { job, message });
                    }
                    Some(first) if job.charge.is_same(&items[*first].job.charge) => self.count("already", 1),
                    Some(_) => unreadable.push(self.contradicts(&message)),
                },
            }
        }
        self.count("parked", unreadable.len());
        (items, unreadable)
    }

    /// Drops duplicates of charges that have ended. Redis names candidates, and the database confirms them, since its rows
    /// may be older than Redis.
    async fn not_ended(&self, mut items: Vec<WorkItem>) -> Vec<WorkItem> {
        let charges: Vec<&Charge> = items.iter().map(|item| &item.job.charge).collect();
        let hits = self.ended_cache.find(&charges).await;
        if hits.is_empty() {
            return items;
        }
        let hits: Vec<&Charge> = charges.into_iter().filter(|c| hits.contains(&c.payment_id)).collect();
        let ended = match self.store.ended(&hits).await {
            Ok(ended) => ended,
            Err(error) => {
                // The insert conflicts with the same rows, and is retried until it succeeds.
                tracing::warn!(
                    error = log_text(&error),
                    "the database cannot confirm hits of Redis; their messages are inserted as if unknown"
                );
                HashSet::new()
            }
        };
        let unconfirmed = self.metrics.work.cache.with_label_values(&["unconfirmed"]);
        unconfirmed.inc_by((hits.len() - ended.len()) as u64);
        items.retain(|item| !ended.contains(&item.job.charge.payment_id));
        self.count("ended", ended.len());
        items
    }

    /// Asks for the right to call before the intent is written. Without it the row waits.
    fn candidate(&self, item: WorkItem) -> Candidate {
        let charge = &item.job.charge;
        let right = match self.shares.take(charge) {
            None => Err(HoldBack { cause: Cause::ShareTaken, pause: SHARE_RETRY_INTERVAL }),
            Some(share) => match self.calls.breaker.begin(charge) {
                Ok(pass) => Ok(Clearance { pass, share }),
                Err(Refusal { until }) => {
                    let pause = until.map(|until| until.saturating_duration_since(Instant::now()));
                    let pause = pause.unwrap_or(SHARE_RETRY_INTERVAL).max(REFUSED_PAUSE_MIN);
                    Err(HoldBack { cause: Cause::BreakerOpen, pause })
                }
            },
        };
        Candidate { item, right }
    }

    /// Commits the intents and returns those to call. A message that the database refuses for good is found by halving and
    /// parked.
    async fn admit(
        &self,
        candidates: Vec<Candidate>,
        unreadable: Vec<Parked>,
        shutdown: &CancellationToken,
    ) -> Result<Vec<(Job, Clearance)>, Stop> {
        let (mut to_call, mut unreadable) = (Vec::with_capacity(candidates.len()), unreadable);
        let mut parts = vec![candidates];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() && unreadable.is_empty() {
                continue;
            }
            let begun = Instant::now();
            let intents: Vec<Intent<'_>> = part.iter().map(Candidate::intent).collect();
            let committing = || self.store.admit_intents(&intents, &unreadable);
            match until_done("commit intents", &self.metrics, shutdown, committing).await {
                Ok(answers) => {
                    self.metrics.committed("intents", part.len(), begun);
                    unreadable.clear();
                    let conflicts = self.sort(part, &answers, &mut to_call);
                    self.park(conflicts, shutdown).await?;
                }
                Err(Stop::Abandoned) => return Err(Stop::Abandoned),
                Err(Stop::Poison(error)) if part.len() <= 1 => {
                    let reason = log_text(&error);
                    self.count("parked", part.len());
                    unreadable
                        .extend(part.iter().map(|candidate| self.parked(&candidate.item.message, &reason)));
                    parts.push(Vec::new());
                }
                Err(Stop::Poison(_)) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
            }
        }
        Ok(to_call)
    }

    /// Counts each outcome and collects the jobs to call; returns the messages to park.
    fn sort(
        &self,
        part: Vec<Candidate>,
        answers: &[Admission],
        to_call: &mut Vec<(Job, Clearance)>,
    ) -> Vec<Parked> {
        let mut conflicts = Vec::new();
        for (Candidate { item, right }, answer) in part.into_iter().zip(answers) {
            let result = match answer {
                Admission::Calling => {
                    to_call.extend(right.ok().map(|right| (item.job, right)));
                    "calling"
                }
                Admission::Waiting => {
                    let pause = right.err().map_or(SHARE_RETRY_INTERVAL, |held_back| held_back.pause);
                    self.due_queue.set(item.job.charge.payment_id, pause);
                    "waiting"
                }
                Admission::Expired => {
                    Metrics::count(&self.metrics.transitions, "expired");
                    "expired"
                }
                Admission::Already => "already",
                Admission::Conflict => {
                    conflicts.push(self.contradicts(&item.message));
                    "parked"
                }
            };
            self.count(result, 1);
        }
        conflicts
    }

    async fn park(&self, messages: Vec<Parked>, shutdown: &CancellationToken) -> Result<(), Stop> {
        if messages.is_empty() {
            return Ok(());
        }
        until_done("park messages", &self.metrics, shutdown, || self.store.park(&messages)).await
    }

    fn parked(&self, message: &Message, reason: &str) -> Parked {
        work::park(&self.queue, message, reason)
    }

    fn contradicts(&self, message: &Message) -> Parked {
        self.metrics.consumer.contradictions.inc();
        self.parked(message, CONFLICT)
    }

    fn count(&self, result: &str, messages: usize) {
        self.metrics.work.jobs.with_label_values(&[result]).inc_by(messages as u64);
    }
}

impl Candidate {
    fn intent(&self) -> Intent<'_> {
        Intent { job: &self.item.job, held_back: self.right.as_ref().err().cloned() }
    }
}

fn message(delivery: Delivery) -> Message {
    let properties = delivery.properties;
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    let headers = properties.headers().iter().flat_map(|table| table.inner());
    let headers = headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect();
    Message {
        body: delivery.data,
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        kind: properties.kind().as_ref().map(ToString::to_string),
        headers,
    }
}
