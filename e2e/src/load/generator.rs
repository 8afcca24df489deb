//! Puts the steps of a profile on a running stack, through the edge, and counts what becomes of each payment.
//!
//! * Payments are asked for at given moments, however the last ones fare (`bench/open.rs` says why).
//! * A payment beside which too many of its step are under way is not asked for: it is dropped, and counted.
//! * A request whose connection broke is sent once more with its key, as a client does.
//! * Ends are read from PaymentTopic, which costs the services nothing. (k6 asks them every 100 ms.)

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use saga::contract::EventType;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::figures::Figures;
use super::profile::{Profile, Step};
use crate::bench::caller::{Address, Answer, CLIENT_NUMBER, Caller};
use crate::bench::endings::Endings;
use crate::bench::latency::Latencies;
use crate::bench::open::pace;
use crate::bench::users::Users;

/// The gateway declines its charges.
const DECLINED_NUMBER: &str = "0812-decline";
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// A load on a stack.
pub struct Generator {
    pub profile: Profile,
    pub address: Address,
    pub users: Users,
    pub endings: Endings,
    /// Begins every idempotency key.
    run: Uuid,
    idle: Mutex<Vec<Caller>>,
    accepted: Mutex<Vec<Uuid>>,
}

/// What is counted of a step while it lasts.
struct Tally {
    step: Step,
    /// Of this step alone: what a step before it left behind is no reason to drop.
    under_way: AtomicU64,
    counts: Mutex<Counts>,
    accept: Latencies,
    settle: Latencies,
}

#[derive(Default)]
struct Counts {
    dropped: u64,
    refused: BTreeMap<String, u64>,
    unsettled: u64,
    wrong: BTreeMap<String, u64>,
}

/// A payment as it is meant.
struct Intended {
    nth: u64,
    user_id: Uuid,
    at: Instant,
}

impl Tally {
    fn new(step: Step) -> Result<Self> {
        let (under_way, counts) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { step, under_way, counts, accept: Latencies::new()?, settle: Latencies::new()? })
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn is_wrong(&self, what: &str) {
        self.count(|counts| *counts.wrong.entry(what.to_owned()).or_default() += 1);
    }

    fn is_refused(&self, answer: String) {
        self.count(|counts| *counts.refused.entry(answer).or_default() += 1);
    }

    fn figures(&self) -> Figures {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Figures {
            step: self.step,
            dropped: counts.dropped,
            refused: counts.refused.clone(),
            unsettled: counts.unsettled,
            wrong: counts.wrong.clone(),
            accept: self.accept.summary(),
            settle: self.settle.summary(),
        }
    }
}

impl Generator {
    pub fn new(profile: Profile, address: Address, users: Users, endings: Endings) -> Self {
        let (idle, accepted) = (Mutex::default(), Mutex::default());
        Self { profile, address, users, endings, run: Uuid::new_v4(), idle, accepted }
    }

    /// Runs the steps, and waits until all payments have ended. A step that is not held is the last one where the profile
    /// looks for the knee.
    ///
    /// # Errors
    /// When the generator itself fails.
    pub async fn run(self: &Arc<Self>) -> Result<Vec<Figures>> {
        let mut tasks = JoinSet::new();
        let mut tallies: Vec<Arc<Tally>> = Vec::new();
        let Profile { steps, pause_seconds, finds_knee, limits, .. } = &self.profile;
        for (nth, step) in steps.iter().enumerate() {
            if nth > 0 && *pause_seconds > 0 {
                all(&mut tasks).await?;
                tokio::time::sleep(Duration::from_secs(u64::from(*pause_seconds))).await;
            }
            tracing::info!(
                rate = step.rate,
                seconds = step.seconds,
                step = nth + 1,
                of = steps.len(),
                "load"
            );
            let tally = Arc::new(Tally::new(*step)?);
            self.step(nth, &tally, &mut tasks).await?;
            tallies.push(tally.clone());
            if *finds_knee {
                all(&mut tasks).await?;
                if !tally.figures().is_held(limits) {
                    break;
                }
            }
        }
        all(&mut tasks).await?;
        Ok(tallies.iter().map(|tally| tally.figures()).collect())
    }

    /// The payments that were answered 201.
    pub fn accepted(&self) -> Vec<Uuid> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn step(self: &Arc<Self>, index: usize, tally: &Arc<Tally>, tasks: &mut JoinSet<()>) -> Result<()> {
        let step = tally.step;
        let count = u32::try_from(step.payments()).context("too many payments for one step")?;
        let mut random = SmallRng::from_os_rng();
        let mut moments = pace(step.rate, count)?;
        let mut shown = Instant::now();
        let mut nth = 0;
        while let Some(at) = moments.recv().await {
            let intended = Intended { nth, user_id: self.users.pick(&mut random), at };
            nth += 1;
            if tally.under_way.load(Ordering::Relaxed) >= step.under_way_max() {
                tally.count(|counts| counts.dropped += 1);
                continue;
            }
            tally.under_way.fetch_add(1, Ordering::Relaxed);
            let (generator, tally) = (self.clone(), tally.clone());
            tasks.spawn(async move {
                generator.payment(index, &tally, intended).await;
                tally.under_way.fetch_sub(1, Ordering::Relaxed);
            });
            while let Some(ended) = tasks.try_join_next() {
                ended.context("payment")?;
            }
            if shown.elapsed() >= PROGRESS_INTERVAL {
                shown = Instant::now();
                tracing::info!(payments = nth, of = count, under_way = tasks.len(), "load");
            }
        }
        Ok(())
    }

    /// One payment, from the request to its end.
    async fn payment(&self, step: usize, tally: &Tally, Intended { nth, user_id, at }: Intended) {
        let is_one_of = |one_in: u32| one_in > 0 && nth % u64::from(one_in) == 0;
        let is_declined = is_one_of(self.profile.declined_one_in);
        let client_number = if is_declined { DECLINED_NUMBER } else { CLIENT_NUMBER };
        let key = format!("{}/{step}/{nth}", self.run);
        let Some(first) = self.accepted_by(tally, "", user_id, client_number, &key).await else { return };
        let accepted_at = Instant::now();
        let Ok(payment_id) = first.payment_id() else { return tally.is_wrong("a 201 that names no payment") };
        tally.accept.record(accepted_at.duration_since(at));
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).push(payment_id);
        if is_one_of(self.profile.replayed_one_in)
            && let Some(again) = self.accepted_by(tally, "sent again: ", user_id, client_number, &key).await
            && !(again.is_replayed && again.body == first.body)
        {
            tally.is_wrong("the same request has another answer");
        }
        let planned = if is_declined { EventType::PaymentFailed } else { EventType::PaymentCompleted };
        match self.endings.of(payment_id).await {
            Ok(ending) if ending.event == planned => {
                tally.settle.record(ending.at.saturating_duration_since(accepted_at));
            }
            Ok(ending) => tally.is_wrong(&format!("{}, and not {}", ending.event.as_str(), planned.as_str())),
            Err(error) => {
                tracing::warn!(%error, "a payment");
                tally.count(|counts| counts.unsettled += 1);
            }
        }
    }

    /// The 201 to this request; any other answer is counted under this prefix.
    async fn accepted_by(
        &self,
        tally: &Tally,
        prefix: &str,
        user_id: Uuid,
        client_number: &str,
        key: &str,
    ) -> Option<Answer> {
        match self.post(user_id, client_number, key).await {
            Ok(answer) if answer.is_created() => return Some(answer),
            Ok(answer) => tally.is_refused(format!("{prefix}{}", answer.kind())),
            Err(error) => {
                tracing::debug!(%error, "no answer");
                tally.is_refused(format!("{prefix}no answer"));
            }
        }
        None
    }

    /// Asks to pay, on a connection that is open already if there is one.
    async fn post(&self, user_id: Uuid, client_number: &str, key: &str) -> Result<Answer> {
        let idle = || {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            std::iter::from_fn(|| idle.pop()).find(|caller| !caller.is_closed())
        };
        // The edge may close a connection just as it is used.
        if let Some(mut caller) = idle()
            && let Ok(answer) = caller.post(user_id, client_number, key).await
        {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(caller);
            return Ok(answer);
        }
        let mut caller = Caller::connect(&self.address).await?;
        let answer = caller.post(user_id, client_number, key).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(caller);
        Ok(answer)
    }
}

/// Waits for all of them.
async fn all(tasks: &mut JoinSet<()>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.context("payment")?;
    }
    Ok(())
}
