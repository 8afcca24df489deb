//! A server is away for half a minute under load: what needs it waits, nothing is lost, and the flow resumes by
//! itself. Only Postgres is needed to accept a payment; while it is away clients get a 503 with a Retry-After.

use std::time::Duration;

use e2e::chaos::faults::{Fault, FaultKind};
use e2e::chaos::plan::{Mix, Plan};
use e2e::chaos::view::View;
use e2e::chaos::{self, Run};
use e2e::retrying_client::RetryCounts;

use crate::captured;
use crate::harness::Harness;

const AWAY: Duration = Duration::from_secs(30);
/// Payments that may be refused for other reasons, of the hundreds that are asked for meanwhile.
const BUSY_MAX: u64 = 5;

/// The retries of clients while `server` was away for most of the load. That all payments ended as planned is
/// asserted here.
async fn retries_without(server: &str, kind: FaultKind) -> RetryCounts {
    let harness = Harness::alone().await;
    let run = Run {
        plan: Plan { seed: 1, payments: 400, users: 20, mix: Mix::QUICK },
        rate: 12.0,
        kills: Vec::new(),
        outages: vec![Fault { after: 40, delay: Duration::ZERO, target: server.to_owned(), kind }],
    };
    let report = chaos::play(&harness.stack, &run, &View::silent()).await.unwrap();
    report.verdict().unwrap();
    captured::assert_valid(&harness).await;
    report.retries
}

/// Nobody who asked to pay could see that it was away: at most a few asked again, since the machine was busy.
fn accepted_all_the_time(retries: RetryCounts) {
    let RetryCounts { unavailable, unanswered, timed_out, replays: _ } = retries;
    assert!(unavailable <= BUSY_MAX, "{retries:?}");
    assert_eq!((unanswered, timed_out), (0, 0), "{retries:?}");
}

/// Everybody who asked meanwhile was answered in time. That each answer was a problem that says when to come
/// back is asserted by the client.
fn refused_for_a_while(retries: RetryCounts) {
    assert!(retries.unavailable > 0, "{retries:?}");
    assert_eq!((retries.unanswered, retries.timed_out), (0, 0), "{retries:?}");
}

#[tokio::test]
async fn kafka_may_be_away() {
    accepted_all_the_time(retries_without("kafka", FaultKind::Stop(AWAY)).await);
}

#[tokio::test]
async fn rabbitmq_may_be_away() {
    accepted_all_the_time(retries_without("rabbitmq", FaultKind::Stop(AWAY)).await);
}

#[tokio::test]
async fn redis_may_be_away() {
    accepted_all_the_time(retries_without("redis", FaultKind::Stop(AWAY)).await);
}

#[tokio::test]
async fn postgres_may_be_away() {
    refused_for_a_while(retries_without("postgres", FaultKind::Stop(AWAY)).await);
}

#[tokio::test]
async fn postgres_may_be_killed() {
    refused_for_a_while(retries_without("postgres", FaultKind::Crash(Duration::from_secs(3))).await);
}
