//! With tokens every call of a user needs one, with the scope of its method; `X-User-ID` does not count.
//!
//! Neither a database nor an issuer is needed to refuse.

use balance_svc::http;
use prometheus::Registry;
use saga::identity::settings::{JwtSettings, Typ};
use saga::identity::{Identity, Settings};
use saga::postgres;
use saga::problem::recover;
use saga::rate_limit::RateLimit;
use saga::shards::Router;
use saga::weight::Weight;
use uuid::Uuid;
use warp::Filter;

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
    let pool = postgres::pool("postgres://nobody@127.0.0.1:1/none", 1, "test").unwrap();
    let identity = Identity::start(Settings::Jwt(settings), &Registry::new()).unwrap();
    let weight = Weight::register(&Registry::new()).unwrap();
    let routes = http::public(Router::one(pool), &identity, &RateLimit::none(), &weight).recover(recover);
    for (method, path, scope) in
        [("GET", "/balance", "payments:read"), ("GET", "/balance/movements", "payments:read")]
    {
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
