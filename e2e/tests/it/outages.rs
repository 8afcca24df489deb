//! A server is away for half a minute under load: what needs it waits, nothing is lost, and the flow resumes by
//! itself. Only Postgres is needed to accept a payment; while it is away clients are told to come back.

use std::time::Duration;

use e2e::chaos::faults::{Deed, Fault};
use e2e::chaos::plan::{Mix, Plan};
use e2e::chaos::view::View;
use e2e::chaos::{self, Run};
use e2e::retrying_client::Troubles;

use crate::world::World;

const AWAY: Duration = Duration::from_secs(30);

/// What clients met with while `server` was away for most of the load. That all payments ended as planned is
/// asserted here.
async fn troubles_without(server: &str, deed: Deed) -> Troubles {
    let world = World::alone().await;
    let run = Run {
        plan: Plan { seed: 1, payments: 400, users: 20, mix: Mix::QUICK },
        rate: 12.0,
        kills: Vec::new(),
        outages: vec![Fault { after: 40, delay: Duration::ZERO, whom: server.to_owned(), deed }],
    };
    let report = chaos::play(&world.stack, &run, &View::silent()).await.unwrap();
    report.verdict().unwrap();
    report.troubles
}

/// Nobody who asked to pay could tell that it was away.
fn accepted_all_the_time(troubles: Troubles) {
    let Troubles { unavailable, unheard, hung, replayed: _ } = troubles;
    assert_eq!((unavailable, unheard, hung), (0, 0, 0), "{troubles:?}");
}

/// Everybody who asked meanwhile was answered in time. That each answer was a problem that says when to come
/// back is asserted by the client.
fn refused_for_a_while(troubles: Troubles) {
    assert!(troubles.unavailable > 0, "{troubles:?}");
    assert_eq!((troubles.unheard, troubles.hung), (0, 0), "{troubles:?}");
}

#[tokio::test]
async fn kafka_may_be_away() {
    accepted_all_the_time(troubles_without("kafka", Deed::Stop(AWAY)).await);
}

#[tokio::test]
async fn rabbitmq_may_be_away() {
    accepted_all_the_time(troubles_without("rabbitmq", Deed::Stop(AWAY)).await);
}

#[tokio::test]
async fn redis_may_be_away() {
    accepted_all_the_time(troubles_without("redis", Deed::Stop(AWAY)).await);
}

#[tokio::test]
async fn postgres_may_be_away() {
    refused_for_a_while(troubles_without("postgres", Deed::Stop(AWAY)).await);
}

#[tokio::test]
async fn postgres_may_be_killed() {
    refused_for_a_while(troubles_without("postgres", Deed::Crash(Duration::from_secs(3))).await);
}
