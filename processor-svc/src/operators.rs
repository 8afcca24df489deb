//! Acts of operators: parked messages are applied again, and charges resolved.
//!
//! * A parked message takes the way of its consumer: a work message that of the queue, an event that of the topic.
//! * Nothing is called from here. A charge that is taken up waits, and the sweeper calls it at once, with a permit, a share and
//!   a pass of the breaker like any other.
//! * The database decides; the due queue and the cache follow the commit.

use std::time::Duration;

use saga::parked::Parked;
use saga::parked::acts::{Reapplication, Reapplied, Reapply};
use saga::postgres::Transaction;
use serde_json::Value;
use uuid::Uuid;

use crate::cause::Cause;
use crate::charge::CONFLICT;
use crate::events::{Cancels, counts, decode};
use crate::metrics::Metrics;
use crate::store::cancel::CancelOutcome;
use crate::store::resolutions::Confirmed;
use crate::store::{Admission, HoldBack, Intent};
use crate::work::{self, Job, Message};

/// Carries out the acts.
#[derive(Clone)]
pub struct Operators {
    pub cancels: Cancels,
    /// The queue of work messages, as parked messages name it.
    pub queue: String,
}

/// What follows the commit of a message that was applied again.
pub enum Effect {
    Admitted(Admission, Uuid),
    Cancelled(CancelOutcome, Box<Job>),
}

impl Operators {
    /// Confirms a proposal; a charge that it ended leaves the due queue.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn confirm(
        &self,
        resolution_id: Uuid,
        operator: &str,
        reason: &str,
    ) -> anyhow::Result<Confirmed> {
        let confirmed = self.cancels.store.confirm(resolution_id, operator, reason).await?;
        if let Confirmed::Done(confirmation, Some(charge)) = &confirmed {
            let status = confirmation.after["status"].as_str().unwrap_or_default();
            Metrics::count(&self.cancels.metrics.transitions, status);
            self.cancels.due_queue.remove(charge.payment_id);
            self.cancels.ended_cache.save(&[charge]);
        }
        Ok(confirmed)
    }

    /// A work message becomes a row that waits: nothing was called for it yet.
    async fn admit(
        &self,
        transaction: &Transaction<'_>,
        message: &Parked,
    ) -> anyhow::Result<(Reapplied, Option<Effect>)> {
        let job = match work::read(&as_message(message)) {
            Ok(job) => job,
            Err(why) => return Ok((Reapplied::Impossible(why), None)),
        };
        // Whoever acts here has no share of the user's and the service's calls; the sweeper takes one.
        let held_back = Some(HoldBack { cause: Cause::ShareTaken, pause: Duration::ZERO });
        let intent = Intent { job: &job, held_back };
        let admission = self.cancels.store.admit_in(transaction, &[intent]).await?;
        let admission = admission.first().copied().unwrap_or(Admission::Already);
        let reapplied = match admission {
            Admission::Calling | Admission::Waiting | Admission::Expired => Reapplied::Applied,
            Admission::Already => Reapplied::Already,
            Admission::Conflict => Reapplied::Impossible(CONFLICT.to_owned()),
        };
        Ok((reapplied, Some(Effect::Admitted(admission, job.charge.payment_id))))
    }

    async fn cancel(
        &self,
        transaction: &Transaction<'_>,
        message: &Parked,
    ) -> anyhow::Result<(Reapplied, Option<Effect>)> {
        let reapplication = Reapplication::new(message);
        let job = match reapplication.event(decode) {
            Ok(job) => job,
            Err(impossible) => return Ok((impossible, None)),
        };
        let park = |_, reason: &str| reapplication.park(reason);
        let outcomes = self.cancels.store.cancel_in(transaction, &[&job], &[], park).await?;
        let effect = outcomes.first().map(|outcome| Effect::Cancelled(*outcome, Box::new(job)));
        Ok((reapplication.result(Ok(counts(&outcomes)))?, effect))
    }
}

impl Reapply for Operators {
    type Effect = Effect;

    async fn reapply(
        &self,
        transaction: &Transaction<'_>,
        message: &Parked,
    ) -> anyhow::Result<(Reapplied, Option<Effect>)> {
        if message.source == self.queue {
            self.admit(transaction, message).await
        } else {
            self.cancel(transaction, message).await
        }
    }

    fn committed(&self, effect: Effect) {
        match effect {
            Effect::Admitted(Admission::Calling | Admission::Waiting, payment_id) => {
                self.cancels.due_queue.set(payment_id, Duration::ZERO);
            }
            Effect::Admitted(Admission::Expired, _) => {
                Metrics::count(&self.cancels.metrics.transitions, "expired");
            }
            Effect::Admitted(Admission::Already | Admission::Conflict, _) => {}
            Effect::Cancelled(outcome, job) => self.cancels.follow(&[&*job], &[outcome]),
        }
    }
}

/// The message as the queue delivered it.
fn as_message(parked: &Parked) -> Message {
    let headers = parked.headers.as_object().into_iter().flatten();
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    Message {
        body: parked.body.clone(),
        message_id: None,
        kind: parked.event_type.clone(),
        headers: headers.filter_map(text).collect(),
    }
}
