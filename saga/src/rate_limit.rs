//! Limits the requests of each user to one instance.
//!
//! * A user has a bucket of requests. Full, it holds those of ten seconds, which may be sent at once; it fills evenly.
//! * A request counts once its user is identified, so nobody uses up the requests of somebody else.
//! * Each instance counts for itself. Behind an edge that spreads requests over N instances a user may have N times as many.
//! * Memory is bounded. Full buckets are removed. While there are too many others, further users are not limited, and counted:
//!   the limit protects users from each other, and must not lock out those who did nothing.
//! * Answers carry `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), a refusal `Retry-After` too.

mod buckets;

use std::num::NonZeroU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

use clap::Args;
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::{Quota, RateLimiter};
use listener::answer_headers;
use prometheus::{IntCounter, Registry};
use uuid::Uuid;
use warp::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use warp::{Filter, Rejection};

use self::buckets::Buckets;
use crate::identity::Caller;
use crate::problem::{Kind, Problem};

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The window of the policy: the edge counts a source address over the same time.
const WINDOW_SECONDS: u32 = 10;
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
/// Users with a bucket at a time: about 6 MB.
const USERS_MAX: usize = 100_000;

/// How many requests a user has.
#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
pub struct Settings {
    /// Requests that one user may send to this instance in ten seconds; 0 is no limit.
    #[arg(long, env = "REQUESTS_PER_USER", default_value_t = 300, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub requests_per_user: u32,
}

/// The limit of every user. Clones share the buckets.
#[derive(Clone)]
pub struct RateLimit(Option<Arc<Limit>>);

type Limiter<C> = RateLimiter<Uuid, Buckets, C, StateInformationMiddleware>;

struct Limit<C: Clock = MonotonicClock> {
    limiter: Limiter<C>,
    requests: NonZeroU32,
    policy: HeaderValue,
    refused: IntCounter,
}

/// The decision about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// The user may send so many more at once.
    Granted { remaining: u32 },
    /// The user may send the next one after so many seconds.
    Refused { retry_after: u64 },
}

impl RateLimit {
    /// Limits users by `settings`.
    ///
    /// # Errors
    /// When the metrics cannot be registered.
    pub fn start(settings: Settings, registry: &Registry) -> anyhow::Result<Self> {
        let refused = IntCounter::new(
            "http_rate_limited_requests_total",
            "Requests that were answered 429, since their user sent too many. Worry when it grows by itself: a client runs wild, or REQUESTS_PER_USER is too low.",
        )?;
        let unlimited = IntCounter::new(
            "http_rate_unlimited_requests_total",
            "Requests that were not limited, since too many users had sent some within ten seconds. Worry when it is not zero: somebody may be making users up.",
        )?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(unlimited.clone()))?;
        let Some(requests) = NonZeroU32::new(settings.requests_per_user) else { return Ok(Self::none()) };
        let buckets = Buckets::new(USERS_MAX, unlimited);
        let limit = Arc::new(Limit::new(requests, buckets, MonotonicClock, refused)?);
        tokio::spawn(prune(Arc::downgrade(&limit), PRUNE_INTERVAL));
        Ok(Self(Some(limit)))
    }

    /// Limits nobody.
    pub fn none() -> Self {
        Self(None)
    }

    /// Extracts what `user` extracts, unless that user has sent too many requests.
    pub fn limit<F>(&self, user: F) -> impl Filter<Extract = (Caller,), Error = Rejection> + Clone + use<F>
    where
        F: Filter<Extract = (Caller,), Error = Rejection> + Clone + Send + Sync + 'static,
    {
        let limit = self.0.clone();
        user.and_then(move |caller: Caller| {
            let admitted = limit.as_ref().map_or(Ok(()), |limit| limit.admit(caller.user_id));
            async move { admitted.map(|()| caller).map_err(warp::reject::custom) }
        })
    }
}

/// Removes the buckets of users who have sent nothing for a while, once per interval, as long as there is a limit.
async fn prune(limit: Weak<Limit>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(limit) = limit.upgrade() else { return };
        limit.limiter.retain_recent();
        limit.limiter.shrink_to_fit();
    }
}

impl<C: Clock> Limit<C> {
    fn new(requests: NonZeroU32, buckets: Buckets, clock: C, refused: IntCounter) -> anyhow::Result<Self> {
        let interval = Duration::from_secs(WINDOW_SECONDS.into()) / requests.get();
        let quota = Quota::with_period(interval).map(|quota| quota.allow_burst(requests));
        let quota = quota.ok_or_else(|| anyhow::anyhow!("REQUESTS_PER_USER is too large: {requests}"))?;
        let policy = HeaderValue::try_from(format!("\"user\";q={requests};w={WINDOW_SECONDS}"))?;
        Ok(Self { limiter: RateLimiter::new(quota, buckets, clock), requests, policy, refused })
    }

    fn decide(&self, user_id: Uuid) -> Decision {
        match self.limiter.check_key(&user_id) {
            Ok(state) => Decision::Granted { remaining: state.remaining_burst_capacity() },
            Err(not_until) => {
                let wait = not_until.wait_time_from(self.limiter.clock().now());
                // Rounded up: a client that comes back too early is refused again.
                let retry_after = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                Decision::Refused { retry_after: retry_after.max(1) }
            }
        }
    }

    /// Admits a request of a user, and says in its answer what the user has left.
    fn admit(&self, user_id: Uuid) -> Result<(), Problem> {
        let decision = self.decide(user_id);
        answer_headers::give(RATELIMIT_POLICY, self.policy.clone());
        if let Ok(left) = HeaderValue::try_from(left(decision)) {
            answer_headers::give(RATELIMIT, left);
        }
        match decision {
            Decision::Granted { .. } => Ok(()),
            Decision::Refused { retry_after } => {
                self.refused.inc();
                answer_headers::give(RETRY_AFTER, retry_after.into());
                let detail = format!(
                    "You may send {} requests in {WINDOW_SECONDS} seconds. Send the next one after Retry-After.",
                    self.requests
                );
                Err(Problem::new(Kind::TooManyRequests, detail))
            }
        }
    }
}

/// The value of `RateLimit`: what is left, and for how many seconds it has to do. Who keeps to it is never refused.
fn left(decision: Decision) -> String {
    match decision {
        Decision::Granted { remaining } => format!("\"user\";r={remaining};t={WINDOW_SECONDS}"),
        Decision::Refused { retry_after } => format!("\"user\";r=0;t={retry_after}"),
    }
}

#[cfg(test)]
#[path = "rate_limit_tests.rs"]
mod tests;
