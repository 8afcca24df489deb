//! With tokens every call of a user needs one, with the scope of its method; `X-User-ID` does not count. Every call counts towards the
//! limit of its user.
//!
//! Neither a database nor an issuer is needed to refuse.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brokers::Brokers;
use payments_svc::accept::Acceptor;
use payments_svc::http::{self, PublicContext};
use payments_svc::metrics::Metrics;
use payments_svc::reader::Reader;
use payments_svc::search::Search;
use payments_svc::shedding::Shedding;
use payments_svc::waiters::Waiters;
use saga::CancellationToken;
use saga::identity::settings::{JwtSettings, Typ};
use saga::identity::{Identity, Settings};
use saga::postgres;
use saga::problem::recover;
use saga::rate_limit::{self, RateLimit};
use saga::search_index;
use saga::shards::Router;
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use crate::TTL;

/// The routes of a service without a database and brokers.
fn routes(settings: Settings, requests_per_user: u32) -> BoxedFilter<(Response,)> {
    let pool = postgres::pool("postgres://nobody@127.0.0.1:1/none", 1, "test").unwrap();
    let metrics = Metrics::register().unwrap();
    let identity = Identity::start(settings, &metrics.registry).unwrap();
    let rate = RateLimit::start(rate_limit::Settings { requests_per_user }, &metrics.registry).unwrap();
    let router = Router::one(pool);
    let acceptor = Acceptor::start(router.clone(), TTL, Shedding::none(), metrics.clone());
    let leaving = CancellationToken::new();
    let kafka = Brokers::at("127.0.0.1:1".to_owned());
    let waiting = metrics.waiting.clone();
    let waiters =
        Waiters::start(kafka, "test".to_owned(), "test".to_owned(), waiting, leaving.clone()).unwrap();
    let reader = Reader::start(router.clone());
    let search = Search::new(&search_index::Settings::default()).unwrap();
    let public = PublicContext { router, acceptor, reader, waiters, search, metrics, leaving };
    http::public(public, &identity, &rate).recover(recover).map(Reply::into_response).boxed()
}

/// Each call counts, whatever it is and whatever comes of it. None of these gets as far as the database.
#[tokio::test]
async fn every_call_of_a_user_counts() {
    let routes = routes(Settings::Header, 1);
    let all = [
        ("POST", "/payments"),
        ("GET", "/payments?limit=0"),
        ("GET", "/payments/search?limit=0"),
        ("GET", "/payments/x"),
        ("GET", "/payments/x/events"),
        ("POST", "/payments/x/cancel"),
    ];
    for (first, path) in all {
        let user = Uuid::now_v7().to_string();
        let call = async |method: &str, path: &str| {
            let request = warp::test::request().method(method).path(path).header("x-user-id", &user);
            request.reply(&routes).await.status().as_u16()
        };
        let status = call(first, path).await;
        assert!([400, 404, 415].contains(&status), "{first} {path}: {status}");
        for (method, other) in all {
            assert_eq!(call(method, other).await, 429, "{method} {other} after {first} {path}");
        }
    }
}

#[tokio::test]
async fn every_call_of_a_user_needs_a_token() {
    let settings = JwtSettings {
        issuer: "https://issuer.example/".to_owned(),
        audience: "https://pay.example".to_owned(),
        jwks_url: "http://127.0.0.1:1/".parse().unwrap(),
        user_claim: "sub".to_owned(),
        typ: Typ::Jwt,
        leeway_seconds: 60,
    };
    let routes = routes(Settings::Jwt(settings), 0);
    let payment = format!("/payments/{}", Uuid::now_v7());
    for (method, path, scope) in [
        ("POST", "/payments", "payments:write"),
        ("GET", "/payments", "payments:read"),
        ("GET", "/payments/search?q=a", "payments:read"),
        ("GET", &payment, "payments:read"),
        ("GET", &format!("{payment}/events"), "payments:read"),
        ("POST", &format!("{payment}/cancel"), "payments:write"),
    ] {
        let user = Uuid::now_v7().to_string();
        let request = warp::test::request().method(method).path(path).header("x-user-id", user);
        let answer = request.reply(&routes).await;
        assert_eq!(answer.status(), 401, "{method} {path}");
        assert_eq!(
            answer.headers()["www-authenticate"],
            format!("Bearer scope=\"{scope}\""),
            "{method} {path}"
        );
    }
}

/// The process ends before it opens anything, and names the setting.
#[test]
fn settings_that_do_not_fit_end_the_process() {
    for (settings, name) in [
        (vec![("AUTH", "jwt"), ("AUTH_AUDIENCE", "https://pay.example")], "AUTH_ISSUER"),
        (vec![("AUTH", "jwt"), ("AUTH_ISSUER", "https://issuer.example/")], "AUTH_AUDIENCE"),
        (vec![("AUTH_ISSUER", "https://issuer.example/")], "AUTH_ISSUER"),
        (vec![("AUTH", "none")], "--auth"),
    ] {
        let mut service = Command::new(env!("CARGO_BIN_EXE_payments-svc"));
        service.env_clear().envs(settings.clone()).stderr(Stdio::piped()).args([
            "--listen-addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            "--database-url=postgres://nobody@127.0.0.1:1/none",
            "--kafka-brokers=127.0.0.1:1",
        ]);
        let (mut child, began) = (service.spawn().unwrap(), Instant::now());
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(30) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{settings:?}: {text}");
        assert!(text.contains(name), "{settings:?}: {text}");
    }
}
