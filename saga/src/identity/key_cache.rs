//! Caches the issuer's keys, and fetches them again before they are too old.
//!
//! * One fetch runs at a time, for all who wait. It is a task of its own, so that a client that leaves does not end it.
//! * Fetches begin a cool-down apart: tokens with keys that nobody knows cause no more than that.
//! * A set that is due is fetched in the background. One that has its maximal age is waited for, so a key that the issuer
//!   has withdrawn is refused by then.
//! * While the issuer cannot be reached, the cached keys go on until the end of the longest outage. Then nobody is
//!   identified (503) until a fetch succeeds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use jsonwebtoken::DecodingKey;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::watch;

use super::jwks_client::JwksClient;
use super::keys::{KeyName, Keys};
use super::settings::JwksUrl;
use super::token::Refusal;
use crate::telemetry::log_text;

/// The times of the cache. `docs/PRODUCTION.md` states the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the beginning of one fetch to the next.
    pub cool_down: Duration,
    /// The age at which a set is fetched in the background.
    pub due: Duration,
    /// The age at which a set is no longer used before a fetch was tried.
    pub age_max: Duration,
    /// The age up to which a set is used while fetches fail.
    pub outage_max: Duration,
    pub fetch_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cool_down: Duration::from_secs(10),
            due: Duration::from_secs(150),
            age_max: Duration::from_secs(300),
            outage_max: Duration::from_secs(3600),
            fetch_timeout: Duration::from_secs(5),
        }
    }
}

/// What is known when a key is asked for.
#[derive(Clone, Copy, Debug)]
struct Situation {
    /// The age of the set, if there is one.
    age: Option<Duration>,
    /// Whether the set has the key.
    has_key: bool,
    /// Whether a fetch is under way.
    is_fetching: bool,
    /// Whether the cool-down of the last fetch is over.
    has_cooled: bool,
    /// Whether the last fetch has failed, a moment ago. A failure of long ago does not say that the issuer is away now.
    has_failed: bool,
    /// Whether this request has waited for a fetch already.
    has_waited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The key may be used.
    Use,
    /// The end of a fetch is worth waiting for.
    Wait,
    /// The issuer has no such key.
    Unknown,
    /// Nobody can say.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    verdict: Verdict,
    /// Whether a fetch begins now.
    fetch: bool,
}

fn decide(now: Situation, limits: &Limits) -> Step {
    let reached = |limit: Duration| now.age.is_none_or(|age| age >= limit);
    let may_fetch = now.has_cooled && !now.is_fetching;
    let lapsed = reached(limits.outage_max);
    // A fetch that failed a moment ago says that the issuer is away: then waiting again would only cost time.
    let usable = now.has_key && !lapsed && (!reached(limits.age_max) || now.has_failed);
    if usable {
        return Step { verdict: Verdict::Use, fetch: may_fetch && reached(limits.due) };
    }
    if !now.has_waited && (may_fetch || now.is_fetching) {
        return Step { verdict: Verdict::Wait, fetch: may_fetch };
    }
    let unsure = lapsed || now.has_failed || now.has_key;
    let verdict = if unsure { Verdict::Unavailable } else { Verdict::Unknown };
    Step { verdict, fetch: false }
}

struct FetchedKeys {
    keys: Keys,
    /// When the fetch began: what was withdrawn later is not known.
    as_of: Instant,
}

#[derive(Default)]
struct State {
    held: Option<FetchedKeys>,
    /// When the last fetch began.
    began: Option<Instant>,
    is_fetching: bool,
    /// When the last fetch failed, if it did.
    failed_at: Option<Instant>,
}

/// The keys of one issuer.
pub struct KeyCache {
    limits: Limits,
    client: JwksClient,
    state: Mutex<State>,
    /// Changes, under the lock of `state`, when a fetch ends.
    ended: watch::Sender<()>,
    fetches: IntCounterVec,
}

enum Found {
    Key(Arc<DecodingKey>),
    Refused(Refusal),
    /// The end of a fetch decides.
    Later(watch::Receiver<()>),
}

impl KeyCache {
    /// A cache whose first fetch begins now.
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, or the metric cannot be registered.
    pub fn start(limits: Limits, url: JwksUrl, registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let opts = Opts::new(
            "identity_key_fetches_total",
            "Fetches of the token issuer's keys, by outcome: succeeded or failed. Worry when only `failed` grows: an hour after the last success no token is accepted.",
        );
        let fetches = IntCounterVec::new(opts, &["outcome"])?;
        registry.register(Box::new(fetches.clone()))?;
        let state = State { began: Some(Instant::now()), is_fetching: true, ..State::default() };
        let cache = Arc::new(Self {
            limits,
            client: JwksClient::new(url)?,
            state: Mutex::new(state),
            ended: watch::Sender::new(()),
            fetches,
        });
        tokio::spawn(cache.clone().fetch(Instant::now()));
        Ok(cache)
    }

    /// The key of this name. Waits for at most one fetch.
    ///
    /// # Errors
    /// When the issuer has no such key, or cannot be asked.
    pub async fn key(self: &Arc<Self>, name: &KeyName) -> Result<Arc<DecodingKey>, Refusal> {
        let mut ended = match self.find(name, false) {
            Found::Key(key) => return Ok(key),
            Found::Refused(refusal) => return Err(refusal),
            Found::Later(ended) => ended,
        };
        // It fails only without a sender, which lives as long as the cache.
        let _ = ended.changed().await;
        match self.find(name, true) {
            Found::Key(key) => Ok(key),
            Found::Refused(refusal) => Err(refusal),
            Found::Later(_) => Err(Refusal::KeysUnavailable),
        }
    }

    fn find(self: &Arc<Self>, name: &KeyName, has_waited: bool) -> Found {
        let mut state = self.state();
        let now = Instant::now();
        let key = state.held.as_ref().and_then(|held| held.keys.find(name));
        let situation = Situation {
            age: state.held.as_ref().map(|held| now.duration_since(held.as_of)),
            has_key: key.is_some(),
            is_fetching: state.is_fetching,
            has_cooled: state.began.is_none_or(|began| now.duration_since(began) >= self.limits.cool_down),
            has_failed: state.failed_at.is_some_and(|at| now.duration_since(at) < self.limits.cool_down * 3),
            has_waited,
        };
        let step = decide(situation, &self.limits);
        if step.fetch {
            state.is_fetching = true;
            state.began = Some(now);
            tokio::spawn(self.clone().fetch(now));
        }
        match (step.verdict, key) {
            (Verdict::Use, Some(key)) => Found::Key(key),
            (Verdict::Wait, _) => Found::Later(self.ended.subscribe()),
            (Verdict::Unavailable, _) => Found::Refused(Refusal::KeysUnavailable),
            (Verdict::Unknown, _) | (Verdict::Use, None) => Found::Refused(Refusal::UnknownKey),
        }
    }

    async fn fetch(self: Arc<Self>, began: Instant) {
        let timeout = self.limits.fetch_timeout;
        let answer = tokio::time::timeout(timeout, self.client.fetch()).await;
        let answer =
            answer.with_context(|| format!("no whole answer within {timeout:?}")).and_then(|keys| keys);
        let mut state = self.state();
        match answer {
            Ok(keys) => {
                self.fetches.with_label_values(&["succeeded"]).inc();
                if keys.len() == 0 {
                    tracing::warn!(url = %self.client.url(), "the issuer has no key for tokens, so every token is refused");
                }
                state.held = Some(FetchedKeys { keys, as_of: began });
                state.failed_at = None;
            }
            Err(error) => {
                self.fetches.with_label_values(&["failed"]).inc();
                let error = log_text(&error);
                tracing::warn!(url = %self.client.url(), error, "the issuer's keys cannot be fetched; cached keys go on for a time");
                state.failed_at = Some(Instant::now());
            }
        }
        state.is_fetching = false;
        self.ended.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "key_cache_tests.rs"]
mod tests;
