//! `kill -9` of each of our processes in the middle of a load: every accepted payment ends as planned,
//! and money adds up. One alone each, so that a failure says who cannot be killed; then all of them, again and again.

use std::time::Duration;

use e2e::chaos::faults::{Fault, FaultKind};
use e2e::chaos::plan::{Mix, Plan};
use e2e::chaos::view::View;
use e2e::chaos::{self, Options, Run};

use crate::captured;
use crate::harness::Harness;

async fn survives_kill_of(process: &str) {
    let harness = Harness::alone().await;
    let kill = Fault { after: 100, delay: Duration::ZERO, target: process.to_owned(), kind: FaultKind::Kill };
    let run = Run {
        plan: Plan { seed: 1, payments: 300, users: 20, mix: Mix::QUICK },
        rate: 100.0,
        kills: vec![kill],
        outages: Vec::new(),
    };
    let report = chaos::play(&harness.stack, &run, &View::silent()).await.unwrap();
    report.verdict().unwrap();
}

#[tokio::test]
async fn payments_svc_may_be_killed() {
    survives_kill_of("payments-svc").await;
}

#[tokio::test]
async fn balance_svc_may_be_killed() {
    survives_kill_of("balance-svc").await;
}

#[tokio::test]
async fn processor_svc_may_be_killed() {
    survives_kill_of("processor-svc").await;
}

#[tokio::test]
async fn cdc_relay_may_be_killed() {
    survives_kill_of("cdc-relay").await;
}

#[tokio::test]
async fn gateway_sim_may_be_killed() {
    survives_kill_of("gateway-sim").await;
}

#[tokio::test]
async fn all_of_them_may_be_killed_twenty_times_and_duplicates_change_nothing() {
    let harness = Harness::alone().await;
    let options = Options {
        seed: 1,
        payments: 600,
        kills: 20,
        rate: 25.0,
        users: 30,
        outage: Vec::new(),
        crash: Vec::new(),
        pause: Vec::new(),
    };
    let report = chaos::report(&harness.stack, &options, &View::silent()).await.unwrap();
    report.verdict().unwrap();
    assert!(report.duplicate_counts.values().sum::<u64>() > 0, "{:?}", report.duplicate_counts);
    assert!(report.re_emitted.values().sum::<u64>() > 0, "{:?}", report.re_emitted);
    captured::assert_valid(&harness).await;
}
