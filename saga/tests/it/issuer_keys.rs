//! The keys of an issuer while it changes them, is attacked through us, or is away.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prometheus::{Registry, TextEncoder};
use saga::identity::settings::JwtSettings;
use saga::identity::{Identity, Limits, Settings};
use serde_json::json;

use crate::harness::WAIT_TIMEOUT;
use crate::identity::{Answer, ONE_FETCH, call, identity};
use crate::issuer::{Behaviour, Issuer, SigningKey, good_claims, set, with};

/// Times short enough for a test. A fetch may take its time.
const QUICK: Limits = Limits {
    cool_down: Duration::from_millis(50),
    due: Duration::from_millis(100),
    age_max: Duration::from_millis(200),
    outage_max: Duration::from_secs(3600),
    fetch_timeout: Duration::from_secs(20),
};

async fn until(identity: &Identity, token: &str, status: u16) {
    let began = Instant::now();
    loop {
        let answer = call(identity, token).await;
        if answer.status == status {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{answer:?} instead of {status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The answer to a call, which is made again after 503: on a busy machine a fetch may take longer than `age_max`.
async fn known(identity: &Identity, token: &str) -> Answer {
    let began = Instant::now();
    loop {
        let answer = call(identity, token).await;
        if answer.status != 503 {
            return answer;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "the keys are not known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_unknown_keys_is_one_fetch_a_cool_down() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    let storm = |identity: Identity, calls: usize| {
        let tokens: Vec<String> = (0..calls)
            .map(|number| {
                key.token(&with(key.header(), &json!({"kid": format!("k{number}")})), &good_claims())
            })
            .collect();
        async move {
            for answer in join_all(tokens.iter().map(|token| call(&identity, token))).await {
                assert_eq!(answer, Answer::invalid());
            }
        }
    };
    // In the cool-down of the first fetch: none at all.
    let cooling = identity(&issuer, ONE_FETCH);
    assert_eq!(call(&cooling, &key.good_token()).await.status, 200);
    storm(cooling, 500).await;
    assert_eq!(issuer.fetches(), 1);
    // One for each cool-down that has passed.
    let limits = Limits { cool_down: Duration::from_millis(200), ..ONE_FETCH };
    let began = Instant::now();
    let quick = identity(&issuer, limits);
    while issuer.fetches() < 4 {
        storm(quick.clone(), 100).await;
        assert!(began.elapsed() < WAIT_TIMEOUT);
    }
    let cool_downs = began.elapsed().as_millis() / limits.cool_down.as_millis();
    let of_quick = u128::try_from(issuer.fetches() - 1).unwrap();
    assert!(of_quick <= cool_downs + 1, "{of_quick} fetches in {cool_downs} cool-downs");
}

#[tokio::test]
async fn a_new_key_is_found_and_a_withdrawn_one_is_refused() {
    let (old, new) = (SigningKey::ec("old"), SigningKey::rsa("new"));
    let issuer = Issuer::new(&[&old]).await;
    let identity = identity(&issuer, QUICK);
    assert_eq!(call(&identity, &old.good_token()).await.status, 200);
    issuer.has(&[&old, &new]);
    until(&identity, &new.good_token(), 200).await;
    assert_eq!(call(&identity, &old.good_token()).await.status, 200, "both, as long as the set has both");
    issuer.has(&[&new]);
    until(&identity, &old.good_token(), 401).await;
    assert_eq!(call(&identity, &new.good_token()).await.status, 200);
    // Withdrawn while nobody called: the old set is not used again.
    issuer.has(&[&old]);
    tokio::time::sleep(QUICK.age_max * 2).await;
    assert_eq!(call(&identity, &new.good_token()).await, Answer::invalid());
    // The same after an outage: that a fetch has failed once does not excuse the next one.
    let fetches = issuer.fetches();
    issuer.becomes(Behaviour::Away);
    while issuer.fetches() == fetches {
        assert_eq!(call(&identity, &old.good_token()).await.status, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    issuer.has(&[&new]);
    tokio::time::sleep(QUICK.age_max * 2).await;
    assert_eq!(call(&identity, &old.good_token()).await, Answer::invalid());
}

#[tokio::test]
async fn an_issuer_that_is_away_is_done_without_for_a_time() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    let limits = Limits { outage_max: Duration::from_secs(2), ..QUICK };
    let identity = identity(&issuer, limits);
    assert_eq!(known(&identity, &key.good_token()).await.status, 200);
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    issuer.becomes(Behaviour::Away);
    loop {
        let at = began.elapsed();
        let answer = call(&identity, &key.good_token()).await;
        if answer.status == 503 && at >= limits.outage_max {
            assert_eq!(answer.body, "unavailable");
            break;
        }
        // As in `known`.
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        if answer.status == 200 {
            longest = at;
        }
        assert!(at < WAIT_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(longest > limits.age_max * 2, "cached keys went on only {longest:?}");
    let unknown = key.token(&with(key.header(), &json!({"kid": "x"})), &good_claims());
    assert_eq!(call(&identity, &unknown).await.status, 503, "nobody can say that there is no such key");
    issuer.has(&[&key]);
    until(&identity, &key.good_token(), 200).await;
}

#[tokio::test]
async fn what_is_no_set_of_keys_in_time_changes_nothing() {
    let key = SigningKey::ec("e");
    let elsewhere = Issuer::new(&[&key]).await;
    for behaviour in [
        Behaviour::Endless,
        Behaviour::Body(
            with(json!({"keys": [key.jwk()]}), &json!({"x": "x".repeat(200_000)})).to_string().into_bytes(),
        ),
        Behaviour::Body(b"<html>".to_vec()),
        Behaviour::Body(Vec::new()),
        Behaviour::Slow(set(&[&key])),
        Behaviour::Redirect(elsewhere.url.clone()),
        Behaviour::Broken,
        Behaviour::Away,
    ] {
        let issuer = Issuer::new(&[&key]).await;
        issuer.becomes(behaviour);
        let limits = Limits { fetch_timeout: Duration::from_millis(500), ..ONE_FETCH };
        let identity = identity(&issuer, limits);
        let answer = call(&identity, &key.good_token()).await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "unavailable"));
    }
    assert_eq!(elsewhere.fetches(), 0, "a redirect is not followed");
    let settings = JwtSettings { jwks_url: "http://127.0.0.1:1/".parse().unwrap(), ..elsewhere.settings() };
    let nobody = Identity::start(Settings::Jwt(settings), &Registry::new()).unwrap();
    assert_eq!(call(&nobody, &key.good_token()).await.status, 503);
}

/// Such as a proxy's page about an error, or keys of before.
#[tokio::test]
async fn keys_that_come_with_an_error_are_none() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    issuer.becomes(Behaviour::BrokenWith(set(&[&key])));
    let identity = identity(&issuer, ONE_FETCH);
    assert_eq!(call(&identity, &key.good_token()).await.status, 503);
}

/// A client that leaves does not take the fetch with it.
#[tokio::test]
async fn a_fetch_goes_on_when_its_client_has_left() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    issuer.becomes(Behaviour::Away);
    let limits = Limits { cool_down: Duration::from_millis(50), ..ONE_FETCH };
    let (registry, settings) = (Registry::new(), Settings::Jwt(issuer.settings()));
    let identity = Identity::start_within(limits, settings, &registry).unwrap();
    let token = key.good_token();
    until(&identity, &token, 503).await;
    issuer.has(&[&key]);
    let succeeded = || {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.contains("identity_key_fetches_total{outcome=\"succeeded\"} 1\n")
    };
    let began = Instant::now();
    while !succeeded() {
        // The call begins, and is dropped while it waits.
        let mut leaving = Box::pin(call(&identity, &token));
        let _ = futures_util::poll!(&mut leaving);
        drop(leaving);
        assert!(began.elapsed() < WAIT_TIMEOUT, "every client took its fetch along");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(call(&identity, &token).await.status, 200);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_has_a_token_or_a_key() {
    let log = Log::default();
    let writer = log.clone();
    let lines =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    // The whole process writes to it: a default of one thread is not seen by call sites that others used first.
    tracing::subscriber::set_global_default(lines.finish()).unwrap();
    let (key, other) = (SigningKey::ec("e"), SigningKey::ec("e"));
    let issuer = Issuer::new(&[&key]).await;
    let identity = identity(&issuer, QUICK);
    let (good, forged) = (key.good_token(), other.good_token());
    let expired = key.token(&key.header(), &with(good_claims(), &json!({"exp": 1})));
    for (token, status) in [(&good, 200), (&forged, 401), (&expired, 401)] {
        assert_eq!(known(&identity, token).await.status, status);
    }
    let keys = String::from_utf8(set(&[&key])).unwrap();
    issuer.becomes(Behaviour::Body(keys.replace(r#"{"keys""#, r#"{"kegs""#).into_bytes()));
    let began = Instant::now();
    let text = loop {
        call(&identity, &good).await;
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        if text.lines().any(|line| line.contains("cannot be fetched") && line.contains(&issuer.url)) {
            break text;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "a failed fetch is not logged: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let jwk = key.jwk();
    let mut secrets = vec![jwk["x"].as_str().unwrap(), jwk["y"].as_str().unwrap()];
    for token in [&good, &forged, &expired] {
        secrets.extend(token.split('.').skip(1));
    }
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in the log:\n{text}");
    }
}
