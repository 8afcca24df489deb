//! Each planted violation is seen by exactly the checks that promise its absence.

use std::collections::BTreeSet;

use coroctl::audit::gateway::Book;
use coroctl::audit::hear::Lag;
use coroctl::audit::places::{Part, Places};
use coroctl::audit::relay::{Cluster, Memory, Slot};
use coroctl::audit::seen::Seen;
use coroctl::audit::{CHECKS, Finding, judge, money, rows};
use tokio_postgres::Client;

use crate::fixture::{Fixture, begin};
use crate::plants::{self, NOTHING, Plant, Scene};
use crate::tellings::Tellings;

pub fn everywhere() -> Places {
    let place = || Some("somewhere".to_owned());
    Places {
        payments_database_url: place(),
        balance_database_url: place(),
        processor_database_url: place(),
        kafka_brokers: place(),
        amqp_url: place(),
        gateway_url: place(),
        ..Places::default()
    }
}

/// What is to be seen once a plant was put there; the databases are left as they were.
async fn seen(clients: &mut [Client; 3], plant: &Plant) -> Seen {
    let transactions = begin(clients).await;
    let Plant { payments, balance, processor, .. } = plant;
    for (transaction, statements) in transactions.iter().zip([payments, balance, processor]) {
        transaction.batch_execute(statements).await.unwrap_or_else(|e| panic!("{}: {e:?}", plant.what));
    }
    let mut scene = Scene::new(Tellings::of(&transactions).await);
    (plant.plant)(&mut scene);
    let [payments, balance, processor] = &transactions;
    let explained: BTreeSet<String> = scene.explained.into_iter().map(str::to_owned).collect();
    let mut seen = Seen {
        money: money::look(balance).await.unwrap(),
        payments: rows::payments(payments).await.unwrap(),
        ledger: rows::ledger(balance).await.unwrap(),
        charges: rows::charges(processor).await.unwrap(),
        told: scene.tellings.told(explained.clone()),
        letters: scene.letters,
        memories: scene.memories,
        clusters: scene.clusters,
        gateway: Book::default(),
        lags: vec![Lag { group: "payments-svc".to_owned(), behind: scene.behind, there: 20 }],
        waiting: scene.waiting,
        explained,
        accepted: scene.accepted,
        ..Seen::default()
    };
    for line in &scene.lines {
        seen.gateway.add(line.to_string().as_bytes()).unwrap();
    }
    seen.note_parked("");
    for transaction in transactions {
        transaction.rollback().await.unwrap();
    }
    seen
}

fn complaining(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().filter(|finding| finding.is_violated()).map(|finding| finding.name).collect()
}

#[tokio::test]
async fn each_violation_is_seen_by_exactly_the_checks_that_promise_its_absence() {
    let fixture = Fixture::new().await;
    let mut clients = fixture.superusers().await;
    let mut wrong = Vec::new();
    for plant in plants::all() {
        let findings = judge(&seen(&mut clients, plant).await, &everywhere(), false);
        let expected: BTreeSet<&str> = plant.complain.iter().copied().collect();
        let found = complaining(&findings);
        if found != expected {
            let offenders: Vec<_> =
                findings.iter().filter_map(|f| Some((f.name, f.first.as_ref()?))).collect();
            wrong.push(format!("{}: {found:?}, not {expected:?}: {offenders:#?}", plant.what));
        }
        for finding in findings.iter().filter(|finding| finding.is_violated()) {
            assert!(finding.first.is_some(), "{}: {} names no offender", plant.what, finding.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(clients);
    fixture.finish().await;
}

#[tokio::test]
async fn in_the_clean_fixture_every_check_has_looked_at_something() {
    let fixture = Fixture::new().await;
    let mut clients = fixture.superusers().await;
    let findings = judge(&seen(&mut clients, &NOTHING).await, &everywhere(), false);
    for finding in &findings {
        let may_be_nothing = ["T6 queue", "T6 parked"].contains(&finding.name);
        assert!(finding.holds() && (finding.examined > 0 || may_be_nothing), "{finding:?}");
    }
    drop(clients);
    fixture.finish().await;
}

#[test]
fn no_check_is_without_a_planted_violation() {
    let planted: BTreeSet<&str> = plants::all().flat_map(|plant| plant.complain.iter().copied()).collect();
    let checks: BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(planted, checks);
}

#[test]
fn what_is_not_given_is_not_looked_at_and_said_so() {
    for part in Part::ALL {
        let mut places = everywhere();
        let place = match part {
            Part::Payments => &mut places.payments_database_url,
            Part::Balance => &mut places.balance_database_url,
            Part::Processor => &mut places.processor_database_url,
            Part::Kafka => &mut places.kafka_brokers,
            Part::Queue => &mut places.amqp_url,
            Part::Gateway => &mut places.gateway_url,
        };
        *place = Some(String::new());
        let findings = judge(&Seen::default(), &places, false);
        let because =
            |finding: &Finding| finding.skipped.as_ref().is_some_and(|why| why.contains(part.variable()));
        assert!(findings.iter().any(because), "{part:?}");
        assert!(findings.iter().all(|f| f.skipped.is_none() || because(f) && !f.holds()), "{part:?}");
    }
}

#[test]
fn under_load_what_holds_only_at_rest_is_left_out() {
    let findings = judge(&Seen::default(), &everywhere(), true);
    for (finding, check) in findings.iter().zip(CHECKS) {
        assert_eq!(finding.skipped.is_some(), check.at_rest, "{}", check.name);
    }
}

#[test]
fn a_slot_may_be_behind_what_is_acknowledged_and_never_ahead() {
    let memory = Memory {
        source: "payments".to_owned(),
        slot: "slot".to_owned(),
        system_id: "1".to_owned(),
        creating: false,
        acknowledged: 100,
    };
    let cluster = |confirmed, lost| Cluster {
        system_id: "1".to_owned(),
        slots: vec![Slot { name: "slot".to_owned(), confirmed, lost }],
    };
    assert_eq!(memory.problem(&cluster(100, false)), None);
    assert_eq!(memory.problem(&cluster(99, false)), None);
    assert!(memory.problem(&cluster(101, false)).is_some());
    assert!(memory.problem(&cluster(1, true)).is_some());
    assert!(memory.problem(&Cluster { system_id: "1".to_owned(), slots: Vec::new() }).is_some());
    assert!(memory.problem(&Cluster { system_id: "2".to_owned(), ..cluster(1, false) }).is_some());
    // Nothing was told from it yet.
    assert_eq!(Memory { creating: true, ..memory }.problem(&Cluster::default()), None);
}
