//! Tests each rule of the module, with a clock of its own where time matters.

use governor::clock::FakeRelativeClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::http::{self, Audience};
use crate::identity::{self, Identity, Scope};
use crate::problem::recover;

fn counter() -> IntCounter {
    IntCounter::new("counter", "Of this test.").unwrap()
}

fn limit(requests: u32, users_max: usize) -> (Limit<FakeRelativeClock>, FakeRelativeClock, IntCounter) {
    let (clock, unlimited) = (FakeRelativeClock::default(), counter());
    let buckets = Buckets::new(users_max, unlimited.clone());
    let limit = Limit::new(NonZeroU32::new(requests).unwrap(), buckets, clock.clone(), counter());
    (limit.unwrap(), clock, unlimited)
}

#[test]
fn a_user_has_so_many_at_once_and_then_one_at_a_time() {
    let (limit, clock, _) = limit(5, 10);
    let (user, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let granted = |remaining| Decision::Granted { remaining };
    for remaining in [4, 3, 2, 1, 0] {
        assert_eq!(limit.decide(user), granted(remaining));
    }
    assert_eq!(limit.decide(user), Decision::Refused { retry_after: 2 });
    assert_eq!(limit.decide(other), granted(4), "another user's bucket is another one");
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        limit.decide(user),
        Decision::Refused { retry_after: 2 },
        "who comes a moment early is refused"
    );
    clock.advance(Duration::from_millis(1_499));
    assert_eq!(limit.decide(user), Decision::Refused { retry_after: 1 }, "a refusal uses up nothing");
    clock.advance(Duration::from_millis(500));
    assert_eq!(limit.decide(user), granted(0));
    clock.advance(Duration::from_secs(WINDOW_SECONDS.into()));
    assert_eq!(limit.decide(user), granted(4));
}

/// A client that spreads what is left over the time that is given with it.
#[test]
fn who_keeps_to_what_is_left_is_never_refused() {
    for sent_at_once in 1..=7 {
        let (limit, clock, _) = limit(7, 10);
        let user = Uuid::from_u128(1);
        let mut decision = (0..sent_at_once).map(|_| limit.decide(user)).last().unwrap();
        for _ in 0..100 {
            let Decision::Granted { remaining } = decision else { panic!("{decision:?}") };
            clock.advance(Duration::from_secs(WINDOW_SECONDS.into()) / remaining.max(1));
            decision = limit.decide(user);
        }
    }
}

#[test]
fn buckets_that_are_full_again_are_removed() {
    let (limit, clock, _) = limit(5, 10);
    for user in 0..5 {
        limit.decide(Uuid::from_u128(user));
    }
    clock.advance(Duration::from_secs(1));
    let busy = Uuid::from_u128(9);
    limit.decide(busy);
    limit.decide(busy);
    limit.limiter.retain_recent();
    assert_eq!(limit.limiter.len(), 6, "a bucket is kept while requests are missing in it");
    clock.advance(Duration::from_secs(4));
    limit.limiter.retain_recent();
    assert_eq!(limit.limiter.len(), 1);
    assert_eq!(limit.decide(busy), Decision::Granted { remaining: 4 });
    clock.advance(Duration::from_secs(10));
    limit.limiter.retain_recent();
    assert!(limit.limiter.is_empty());
}

#[test]
fn a_full_table_limits_those_it_has_and_counts_the_others() {
    let (limit, _, unlimited) = limit(1, 2);
    for user in [1, 2] {
        assert_eq!(limit.decide(Uuid::from_u128(user)), Decision::Granted { remaining: 0 });
    }
    for _ in 0..3 {
        assert_eq!(limit.decide(Uuid::from_u128(3)), Decision::Granted { remaining: 0 });
    }
    assert_eq!((limit.limiter.len(), unlimited.get()), (2, 3));
    assert!(matches!(limit.decide(Uuid::from_u128(1)), Decision::Refused { .. }));
}

#[test]
fn the_fields_are_structured_as_the_draft_has_them() {
    let (limit, _, _) = limit(300, 1);
    assert_eq!(limit.policy, "\"user\";q=300;w=10");
    assert_eq!(left(Decision::Granted { remaining: 299 }), "\"user\";r=299;t=10");
    assert_eq!(left(Decision::Refused { retry_after: 1 }), "\"user\";r=0;t=1");
}

#[tokio::test]
async fn a_refusal_is_a_problem_and_without_a_limit_there_is_none() {
    let identity = Identity::start(identity::Settings::Header, &Registry::new()).unwrap();
    for (requests_per_user, expected) in [(2, [200, 200, 429]), (0, [200, 200, 200])] {
        let limit = RateLimit::start(Settings { requests_per_user }, &Registry::new()).unwrap();
        let route = limit
            .limit(identity.user(Scope::Read))
            .map(|caller: Caller| caller.user_id.to_string())
            .recover(recover);
        let user = Uuid::from_u128(1).to_string();
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let reply = warp::test::request().header("x-user-id", &user).reply(&route).await;
            statuses.push(reply.status().as_u16());
        }
        assert_eq!(statuses, expected, "{requests_per_user}");
    }
}

/// Users that have a token call under their name; who only says a name is not identified.
fn with_token() -> impl Filter<Extract = (Caller,), Error = Rejection> + Clone {
    let identity = Identity::start(identity::Settings::Header, &Registry::new()).unwrap();
    let token = warp::header::optional::<String>("x-token").and_then(|token: Option<String>| async move {
        token.map(drop).ok_or_else(|| warp::reject::custom(Problem::token_missing("payments:read")))
    });
    token.untuple_one().and(identity.user(Scope::Read))
}

async fn status(route: &warp::filters::BoxedFilter<(String,)>, token: bool) -> u16 {
    let user = Uuid::from_u128(1).to_string();
    let request = warp::test::request().header("x-user-id", user);
    let request = if token { request.header("x-token", "valid") } else { request };
    request.reply(&route.clone().recover(recover)).await.status().as_u16()
}

fn limited(limit: &RateLimit) -> warp::filters::BoxedFilter<(String,)> {
    limit.limit(with_token()).map(|caller: Caller| caller.user_id.to_string()).boxed()
}

#[tokio::test]
async fn a_request_whose_user_is_not_identified_uses_up_nothing() {
    let limit = RateLimit::start(Settings { requests_per_user: 2 }, &Registry::new()).unwrap();
    let route = limited(&limit);
    for _ in 0..10 {
        assert_eq!(status(&route, false).await, 401);
    }
    let statuses = [status(&route, true).await, status(&route, true).await, status(&route, true).await];
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test]
async fn the_routes_of_an_instance_share_the_buckets_and_instances_do_not() {
    let instance = || RateLimit::start(Settings { requests_per_user: 1 }, &Registry::new()).unwrap();
    let (first, second) = (instance(), instance());
    assert_eq!(status(&limited(&first), true).await, 200);
    assert_eq!(status(&limited(&first.clone()), true).await, 429);
    assert_eq!(status(&limited(&second), true).await, 200);
}

#[tokio::test]
async fn full_buckets_are_removed_by_themselves_until_the_limit_is_gone() {
    // A bucket of a million is full again ten microseconds after its first request.
    let buckets = Buckets::new(10, counter());
    let requests = NonZeroU32::new(1_000_000).unwrap();
    let limit = Arc::new(Limit::new(requests, buckets, MonotonicClock, counter()).unwrap());
    limit.decide(Uuid::from_u128(1));
    let pruned = tokio::spawn(prune(Arc::downgrade(&limit), Duration::from_millis(1)));
    let emptied = async {
        while !limit.limiter.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), emptied).await.unwrap();
    drop(limit);
    tokio::time::timeout(Duration::from_secs(60), pruned).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_limit_that_is_started_removes_buckets_and_without_one_there_are_none() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for (requests_per_user, running) in [(0, 0), (300, 1)] {
        let limit = RateLimit::start(Settings { requests_per_user }, &Registry::new()).unwrap();
        assert_eq!(tasks() - before, running, "{requests_per_user}");
        drop(limit);
    }
}

/// The head of the answer to a request of one user, at this address.
async fn head(address: std::net::SocketAddr) -> String {
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let user = Uuid::from_u128(1);
    let request = format!(
        "GET / HTTP/1.1\r\nhost: test\r\nx-user-id: {user}\r\nx-token: valid\r\nconnection: close\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

#[tokio::test]
async fn every_answer_says_what_is_left_and_a_refusal_when_to_come_back_and_is_counted() {
    let registry = Registry::new();
    let limit = RateLimit::start(Settings { requests_per_user: 1 }, &registry).unwrap();
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (socket.local_addr().unwrap(), crate::CancellationToken::new());
    let served = tokio::spawn(http::serve(socket, limited(&limit), Audience::Anyone, shutdown.clone()));

    let granted = head(address).await;
    assert!(granted.starts_with("http/1.1 200 "), "{granted}");
    assert!(granted.contains("\r\nratelimit-policy: \"user\";q=1;w=10"), "{granted}");
    assert!(granted.contains("\r\nratelimit: \"user\";r=0;t=10"), "{granted}");
    assert!(!granted.contains("retry-after"), "{granted}");

    let refused = head(address).await;
    assert!(refused.starts_with("http/1.1 429 "), "{refused}");
    assert!(refused.contains("\r\nratelimit-policy: \"user\";q=1;w=10"), "{refused}");
    let line = |name: &str| refused.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let seconds = line("retry-after: ");
    assert!((1..=10).contains(&seconds.parse::<u64>().unwrap()), "{refused}");
    assert_eq!(line("ratelimit: "), format!("\"user\";r=0;t={seconds}"));

    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == "http_rate_limited_requests_total").unwrap();
    assert_eq!(family.get_metric()[0].get_counter().get_value(), 1.0);
    shutdown.cancel();
    served.await.unwrap().unwrap();
}
