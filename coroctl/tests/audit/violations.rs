//! Each planted violation is found by exactly the checks that promise its absence.

use std::collections::BTreeSet;

use coroctl::audit::checks::transport::slot_problem;
use coroctl::audit::observed::{Observed, ServedDatabases};
use coroctl::audit::read::brokers::GroupLag;
use coroctl::audit::read::gateway::GatewayLedger;
use coroctl::audit::read::relay::{Checkpoint, Cluster, Slot};
use coroctl::audit::read::search::{Document, SearchDocuments};
use coroctl::audit::read::{money, rows};
use coroctl::audit::targets::{Target, Targets};
use coroctl::audit::{CHECKS, Finding, judge};
use coroctl::owned_rows::OwnedRows;
use saga::search_index::Settings;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::emissions::EmittedEvents;
use crate::fixture::{Fixture, begin};
use crate::plants::{self, Harness, NOTHING, Plant};

pub fn everywhere() -> Targets {
    let address = || Some("somewhere".to_owned());
    Targets {
        payments_database_url: address(),
        balance_database_url: address(),
        processor_database_url: address(),
        kafka_brokers: address(),
        amqp_url: address(),
        gateway_url: address(),
        search: Settings { search_url: address(), ..Settings::default() },
        notifier_database_url: address(),
        fraud_database_url: address(),
        ..Targets::default()
    }
}

/// Observes the fixture with a plant in it; the databases are left as they were.
async fn observed(clients: &mut [Client; 3], plant: &Plant) -> Observed {
    let transactions = begin(clients).await;
    let Plant { payments, balance, processor, .. } = plant;
    for (transaction, statements) in transactions.iter().zip([payments, balance, processor]) {
        transaction.batch_execute(statements).await.unwrap_or_else(|e| panic!("{}: {e:?}", plant.what));
    }
    let [payments, balance, processor] = &transactions.each_ref();
    let all = OwnedRows::all();
    let mut observed = Observed::default();
    rows::payments(*payments, &all, &mut observed.payments).await.unwrap();
    rows::ledger(*balance, &all, &mut observed.ledger).await.unwrap();
    money::read(*balance, &all, &mut observed.money).await.unwrap();
    rows::charges(*processor, &all, &mut observed.charges).await.unwrap();
    let search = documents_of(&observed.payments);
    let mut harness = Harness::new(EmittedEvents::of(&transactions).await, search);
    (plant.plant)(&mut harness);
    let explained: BTreeSet<String> = harness.explained.into_iter().map(str::to_owned).collect();
    let mut observed = Observed {
        events: harness.events.published(explained.clone()),
        dead_letters: harness.dead_letters,
        checkpoints: harness.checkpoints,
        databases: ServedDatabases {
            clusters: harness.clusters,
            ownership: harness.ownership,
            ..ServedDatabases::default()
        },
        gateway: GatewayLedger::default(),
        lags: vec![GroupLag { group: "payments-svc".to_owned(), lag: harness.lag, records: 20 }],
        queue_depth: harness.queue_depth,
        derived: harness.derived,
        explained,
        accepted: harness.accepted,
        ..observed
    };
    for line in &harness.lines {
        observed.gateway.add(line.to_string().as_bytes()).unwrap();
    }
    observed.collect_parked_ids("");
    for transaction in transactions {
        transaction.rollback().await.unwrap();
    }
    observed
}

/// The documents of an index that has every row, each by the event at this place.
fn documents_of(payments: &rows::Payments) -> SearchDocuments {
    let document =
        |version, fingerprint| Document { version, fingerprint, record: "PaymentTopic/0/19".to_owned() };
    let of_payment = |(id, row): (&Uuid, &rows::Payment)| (*id, document(row.version, row.fingerprint));
    let of_service = |(id, row): (&String, &(u32, u64))| (id.clone(), document(row.0, row.1));
    SearchDocuments {
        payments: payments.rows.iter().map(of_payment).collect(),
        services: payments.services.iter().map(of_service).collect(),
        parked: Vec::new(),
    }
}

fn complaining(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().filter(|finding| finding.is_violated()).map(|finding| finding.name).collect()
}

#[tokio::test]
async fn each_violation_is_found_by_exactly_the_checks_that_promise_its_absence() {
    let fixture = Fixture::new().await;
    let mut clients = fixture.superusers().await;
    let mut wrong = Vec::new();
    for plant in plants::all() {
        let findings = judge(&observed(&mut clients, plant).await, &everywhere(), false);
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
async fn in_the_clean_fixture_every_check_has_examined_something() {
    let fixture = Fixture::new().await;
    let mut clients = fixture.superusers().await;
    let findings = judge(&observed(&mut clients, &NOTHING).await, &everywhere(), false);
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
fn a_check_without_its_target_is_skipped_and_says_why() {
    for target in Target::ALL {
        let mut targets = everywhere();
        let address = match target {
            Target::Payments => &mut targets.payments_database_url,
            Target::Balance => &mut targets.balance_database_url,
            Target::Processor => &mut targets.processor_database_url,
            Target::Kafka => &mut targets.kafka_brokers,
            Target::Queue => &mut targets.amqp_url,
            Target::Gateway => &mut targets.gateway_url,
            Target::Search => &mut targets.search.search_url,
            Target::Notifier => &mut targets.notifier_database_url,
            Target::Fraud => &mut targets.fraud_database_url,
        };
        *address = Some(String::new());
        let findings = judge(&Observed::default(), &targets, false);
        let because =
            |finding: &Finding| finding.skipped.as_ref().is_some_and(|why| why.contains(target.variable()));
        // T6 reads what the fraud detector parked where it runs; nothing else is asked of it.
        assert!(findings.iter().any(because) || target == Target::Fraud, "{target:?}");
        assert!(findings.iter().all(|f| f.skipped.is_none() || because(f) && !f.holds()), "{target:?}");
    }
}

#[test]
fn under_load_checks_that_need_quiescence_are_skipped() {
    let findings = judge(&Observed::default(), &everywhere(), true);
    for (finding, check) in findings.iter().zip(CHECKS) {
        assert_eq!(finding.skipped.is_some(), check.when_quiescent, "{}", check.name);
    }
}

#[test]
fn a_slot_may_be_behind_what_is_acknowledged_and_never_ahead() {
    let checkpoint = Checkpoint {
        source: "payments".to_owned(),
        slot: "slot".to_owned(),
        system_id: "1".to_owned(),
        creating: false,
        acknowledged: 100,
    };
    let cluster = |confirmed, lost| Cluster {
        shard: None,
        system_id: "1".to_owned(),
        slots: vec![Slot { name: "slot".to_owned(), confirmed, lost }],
    };
    assert_eq!(slot_problem(&checkpoint, &cluster(100, false)), None);
    assert_eq!(slot_problem(&checkpoint, &cluster(99, false)), None);
    assert!(slot_problem(&checkpoint, &cluster(101, false)).is_some());
    assert!(slot_problem(&checkpoint, &cluster(1, true)).is_some());
    assert!(slot_problem(&checkpoint, &Cluster { slots: Vec::new(), ..cluster(1, false) }).is_some());
    assert!(slot_problem(&checkpoint, &Cluster { system_id: "2".to_owned(), ..cluster(1, false) }).is_some());
    // Nothing was emitted from it yet.
    assert_eq!(slot_problem(&Checkpoint { creating: true, ..checkpoint }, &Cluster::default()), None);
}
