//! How many requests a user may send to an instance, and what answers say about it.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};
use crate::instance::FurtherInstance;
use crate::raw_http::{Answer, request};

const REQUESTS: usize = 2;

async fn get(door: &str, path: &str, user: Uuid) -> Answer {
    let user = user.to_string();
    let headers = [("host", "coro"), ("x-user-id", user.as_str())];
    request(door, &format!("GET {path} HTTP/1.1"), &headers, "").await
}

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", String::as_str)
}

#[tokio::test]
async fn a_user_has_so_many_requests_and_other_users_theirs() {
    let _harness = Harness::shared().await;
    for (service, path) in [("payments-svc", "/payments"), ("balance-svc", "/balance/movements")] {
        let instance = FurtherInstance::start(service, &[("REQUESTS_PER_USER", "2")]).await;
        let (user, other) = (Uuid::now_v7(), Uuid::now_v7());
        for nth in 1..=REQUESTS {
            let answer = get(&instance.url, path, user).await;
            assert_eq!(answer.status, 200, "{service}: {answer:?}");
            assert_eq!(field(&answer, "ratelimit-policy"), "\"user\";q=2;w=10");
            assert_eq!(field(&answer, "ratelimit"), format!("\"user\";r={};t=10", REQUESTS - nth));
        }
        let refused = get(&instance.url, path, user).await;
        refused.expect_problem(429, "too-many-requests", service);
        let retry_after: u64 = field(&refused, "retry-after").parse().unwrap();
        assert!((1..=5).contains(&retry_after), "half of ten seconds at most: {refused:?}");
        assert_eq!(field(&refused, "ratelimit"), format!("\"user\";r=0;t={retry_after}"));
        assert_eq!(get(&instance.url, path, other).await.status, 200, "{service}: another user");
        assert!(instance.metric("http_rate_limited_requests_total").await >= 1.0);

        // Without a user there is nobody to limit, and nothing is used up.
        for _ in 0..=REQUESTS {
            let nobody =
                request(&instance.url, &format!("GET {path} HTTP/1.1"), &[("host", "coro")], "").await;
            nobody.expect_problem(401, "no-user", service);
            assert_eq!(field(&nobody, "ratelimit"), "");
            assert_eq!(get(&instance.url, "/health", user).await.status, 200);
        }
        // A refusal uses up nothing, so that one who asks again and again is answered in the end.
        let began = Instant::now();
        while get(&instance.url, path, user).await.status != 200 {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{service}: the user stays refused");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_refused_request_to_pay_makes_no_payment() {
    let harness = Harness::shared().await;
    let instance = FurtherInstance::start("payments-svc", &[("REQUESTS_PER_USER", "1")]).await;
    let user = Uuid::now_v7();
    let pay = async |key: &str| {
        let (text, body) = (user.to_string(), harness.order(100, key).to_string());
        let headers = [("host", "coro"), ("x-user-id", text.as_str()), ("content-type", "application/json")];
        request(&instance.url, "POST /payments HTTP/1.1", &headers, &body).await
    };
    assert_eq!(pay("first").await.status, 201);
    pay("second").await.expect_problem(429, "too-many-requests", "the second");
    assert_eq!(harness.payments_of(user).await, 1);
}
