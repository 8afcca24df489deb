//! The read model when its parts hang, are killed or away, are made anew, or cannot read a record.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use coroctl::audit;
use e2e::chaos::faults::{Fault, FaultKind};
use e2e::chaos::plan::{Mix, Plan};
use e2e::chaos::view::View;
use e2e::chaos::{self, Run};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use reqwest::StatusCode;
use rustix::process::Signal;
use saga::contract::{HEADER_TYPE, SERVICE_TOPIC};
use stack::control;
use stack::layout::Layout;
use stack::process::ProcessId;
use tokio::process::Command;
use uuid::Uuid;

use super::{Answer, pay, search_at, until_found};
use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, binary, get, producer};
use crate::instance::FurtherInstance;

/// An indexer has ended by then: a request that is under way has ten seconds, and the group is left.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A search answers 503, and says when to try again.
async fn is_away(harness: &Harness, user: Uuid) {
    let answer = search_at(&harness.stack.edge_url, user, &[("q", "0812")]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    assert_eq!(answer.body["type"], "urn:coro:problem:unavailable");
    assert_eq!(answer.retry_after.as_deref(), Some("1"));
}

#[tokio::test]
async fn without_the_index_only_searches_fail_and_it_catches_up_by_itself() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.cargo_stack("stop", "opensearch").await;
    is_away(&harness, user).await;
    let payment = harness.settle(user, "0812", 400).await;
    assert_eq!(payment["status"], "completed");
    is_away(&harness, user).await;
    harness.cargo_stack("start", "opensearch").await;
    let id = payment["payment_id"].as_str().unwrap().to_owned();
    until_found(&harness, user, &[("q", "0812")], &[id]).await;
    harness.adds_up().await;
}

#[tokio::test]
async fn an_index_that_hangs_is_answered_503_in_time_and_no_more_than_sixteen_wait_for_it() {
    let _harness = Harness::shared().await;
    // Nobody accepts: the kernel does, and no answer comes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let instance = FurtherInstance::start("payments-svc", &[("SEARCH_URL", &url)]).await;
    let user = Uuid::now_v7();
    let searches = (0..17).map(|_| search_at(&instance.url, user, &[("q", "0812")]));
    let answers = futures_util::future::join_all(searches).await;
    for answer in &answers {
        let Answer { status, retry_after, body } = answer;
        assert_eq!((status.as_u16(), retry_after.as_deref()), (503, Some("1")), "{body}");
    }
    let outcomes = ["unavailable", "busy"];
    let counts = outcomes.map(|outcome| format!("payments_searches_total{{outcome=\"{outcome}\"}}"));
    let [unavailable, busy] = counts.each_ref().map(|series| instance.metric(series));
    assert_eq!((unavailable.await, busy.await), (16.0, 1.0), "{answers:?}");
}

#[tokio::test]
async fn without_search_nobody_is_asked_to_come_back() {
    let _harness = Harness::shared().await;
    let instance = FurtherInstance::start("payments-svc", &[("SEARCH_URL", "")]).await;
    let Answer { status, retry_after, body } =
        search_at(&instance.url, Uuid::now_v7(), &[("q", "0812")]).await;
    assert_eq!((status, retry_after), (StatusCode::SERVICE_UNAVAILABLE, None), "{body}");
    assert_eq!(body["type"], "urn:coro:problem:unavailable");
}

#[tokio::test]
async fn an_index_that_hangs_holds_up_neither_searches_nor_the_end_of_its_indexer() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let paused = Paused::child("opensearch").await;
    is_away(&harness, user).await;
    let id = pay(&harness, user, "0812").await;
    let began = Instant::now();
    harness.cargo_stack("stop", "search-indexer").await;
    let took = began.elapsed();
    drop(paused);
    harness.cargo_stack("start", "search-indexer").await;
    assert!(took < STOP_TIMEOUT, "stopping took {took:?}");
    until_found(&harness, user, &[("q", "0812")], &[id]).await;
    harness.adds_up().await;
}

/// A process of the stack that was stopped in its tracks, until this is dropped.
struct Paused(ProcessId);

impl Paused {
    async fn child(name: &'static str) -> Self {
        let find = move || {
            let mut client = control::Client::connect(&Layout::from_env().unwrap().socket()).unwrap();
            let children = client.status().unwrap();
            children.into_iter().find(|child| child.name == name).and_then(|child| child.id).unwrap()
        };
        let id = tokio::task::spawn_blocking(find).await.unwrap();
        assert!(id.signal(Signal::STOP));
        Self(id)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

/// A record that search-indexer alone cannot read, since nobody else reads this topic.
#[tokio::test]
async fn what_search_alone_has_parked_is_found_by_the_audit_until_it_is_explained() {
    let harness = Harness::alone().await;
    let headers = OwnedHeaders::new()
        .insert(Header { key: EXPLAINED.0, value: Some(EXPLAINED.1) })
        .insert(Header { key: HEADER_TYPE, value: Some("service.changed.v1") });
    let record = FutureRecord::to(SERVICE_TOPIC).key("nobody").payload("not json").headers(headers);
    let at = producer().send(record, WAIT_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
    let id = format!("{SERVICE_TOPIC}/{}/{}", at.partition, at.offset);
    let began = Instant::now();
    let parked = ("search", id.clone());
    while !harness.explained_everywhere().await.contains(&parked) {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{id} is not parked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut explained = harness.explained_everywhere().await;
    assert!(explained.remove(&parked));
    let explained = explained.into_iter().map(|(_, id)| id).collect();
    let options = audit::Options { explained, ..audit::Options::default() };
    let findings = audit::run_with(&harness.stack, &options).await.unwrap();
    let violated: Vec<_> = findings.iter().filter(|finding| !finding.holds()).collect();
    let [finding] = violated[..] else { panic!("{violated:#?}") };
    assert_eq!((finding.name, finding.violations), ("T6 parked", 1), "{finding:?}");
    assert!(finding.first.as_ref().unwrap().contains(&id), "{finding:?}");
    harness.adds_up().await;
}

/// 400 payments of 20 users, so of all partitions; none is awaited while they are made.
async fn load_while(harness: &Harness, fault: impl AsyncFnOnce()) {
    let mut users = Vec::new();
    for _ in 0..20 {
        users.push(harness.client.user_with(1_000_000).await.unwrap());
    }
    load(harness, &users).await;
    fault().await;
    load(harness, &users).await;
}

async fn load(harness: &Harness, users: &[Uuid]) {
    for nth in 0..200 {
        pay(harness, users[nth % users.len()], "0812").await;
    }
}

#[tokio::test]
async fn two_indexers_share_the_work_and_a_kill_of_one_loses_nothing() {
    let harness = Harness::alone().await;
    for name in ["search-indexer", "search-indexer-2"] {
        load_while(&harness, async || harness.cargo_stack("kill", name).await).await;
        harness.adds_up().await;
    }
    for variable in ["SEARCH_INDEXER_ADMIN_URL", "SEARCH_INDEXER_2_ADMIN_URL"] {
        let url = std::env::var(variable).unwrap();
        let applied = applied(&url).await;
        assert!(applied > 0.0, "{variable} has indexed nothing");
    }
}

/// The records that this indexer has written since it started.
async fn applied(admin_url: &str) -> f64 {
    let text = get(format!("{admin_url}/metrics")).await.unwrap().text().await.unwrap();
    let counts =
        text.lines().filter_map(|line| line.strip_prefix("consumer_records_total{outcome=\"applied\"} "));
    counts.map(|count| count.parse::<f64>().unwrap()).sum()
}

/// Runs `search-indexer rebuild` as an operator would.
async fn rebuild(harness: &Harness) {
    let status = Command::new(binary("search-indexer"))
        .arg("rebuild")
        .env("KAFKA_CONFIG", format!("{}/kafka/search-indexer.properties", harness.stack.dir))
        .env("SEARCH_URL", harness.stack.search_url.as_deref().unwrap())
        .status();
    let status = tokio::time::timeout(Duration::from_secs(600), status).await.unwrap().unwrap();
    assert!(status.success(), "rebuild: {status}");
}

#[tokio::test]
async fn a_rebuild_under_load_agrees_with_the_database() {
    let harness = Harness::alone().await;
    load_while(&harness, async || rebuild(&harness).await).await;
    harness.adds_up().await;
}

#[tokio::test]
#[ignore = "ten minutes: cargo stack test --all"]
async fn search_agrees_after_ten_thousand_payments_with_chaos_a_rebuild_and_five_minutes_without_index() {
    let harness = Harness::alone().await;
    let away = Duration::from_secs(300);
    let kill = |after: usize, target: &str| Fault {
        after,
        delay: Duration::from_millis(100),
        target: target.to_owned(),
        kind: FaultKind::Kill,
    };
    let run = Run {
        plan: Plan { seed: 1, payments: 10_000, users: 100, mix: Mix::QUICK },
        rate: 30.0,
        kills: vec![
            kill(300, "search-indexer"),
            kill(900, "cdc-relay"),
            kill(5_000, "search-indexer-2"),
            kill(9_800, "payments-svc"),
        ],
        outages: vec![Fault {
            after: 500,
            delay: Duration::ZERO,
            target: "opensearch".to_owned(),
            kind: FaultKind::Stop(away),
        }],
    };
    chaos::play(&harness.stack, &run, &View::silent()).await.unwrap().verdict().unwrap();
    load_while(&harness, async || rebuild(&harness).await).await;
    harness.adds_up().await;
}
