//! Attacks that leave a payment without an end, each ended by operators: the audit names it before, and is green after.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use balance_svc::command::Command;
use balance_svc::saga::Event;
use coroctl::audit;
use jiff::Timestamp;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use saga::contract::{PAYMENT_QUEUE, Terms};
use saga::parked::Parked;
use saga::shards::Router;
use serde_json::{Value, json};
use uuid::Uuid;

use super::command::{act, emitted, json, parked_about, refusal, resolve};
use crate::harness::{Harness, WAIT_TIMEOUT, http};

/// A work message that nobody emitted.
async fn forge_work(harness: &Harness, user: Uuid, payment_id: Uuid, client_number: &str, amount: i64) {
    let connection =
        Connection::connect(&harness.stack.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let service = &harness.stack.demo_service_id;
    let body = json!({"payload": {
        "user_id": user, "client_number": client_number, "service_id": service, "amount": amount.to_string(),
        "transaction_id": payment_id,
    }});
    let properties = BasicProperties::default()
        .with_message_id(format!("forged-{}", Uuid::new_v4()).into())
        .with_type("payment.authorized.v1".into());
    let (options, body) = (BasicPublishOptions::default(), body.to_string());
    let published =
        channel.basic_publish("".into(), PAYMENT_QUEUE.into(), options, body.as_bytes(), properties);
    assert!(published.await.unwrap().await.unwrap().is_ack());
    connection.close(200, "done".into()).await.unwrap();
}

/// A payment of 400 whose forged work was charged before it had a hold, and that has its hold now.
async fn attacked(harness: &Harness, user: Uuid, charged: (Uuid, i64)) -> Uuid {
    harness.cargo_stack("stop", "balance-svc").await;
    let payment_id = harness.client.pay(user, "0812", 400).await.unwrap();
    forge_work(harness, charged.0, payment_id, "0812", charged.1).await;
    harness.charge(payment_id, "status = 'succeeded'").await;
    harness.cargo_stack("start", "balance-svc").await;
    harness.client.wait_for_status(user, payment_id, "authorized", WAIT_TIMEOUT).await.unwrap();
    payment_id
}

/// Waits until a service has parked something about the payment, and returns its id.
async fn parked(database: &str, payment_id: Uuid) -> String {
    let began = Instant::now();
    loop {
        let found = parked_about(database, payment_id).await;
        if let Some(first) = found.first() {
            return first.clone();
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{database} has parked nothing about {payment_id}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The names of the checks that name a violation now.
async fn violated(harness: &Harness) -> BTreeSet<&'static str> {
    let explained =
        harness.explained_everywhere().await.into_iter().map(|(_, parked_id)| parked_id).collect();
    let options = audit::Options { explained, wait: Duration::ZERO, ..audit::Options::default() };
    let findings = audit::run_with(&harness.stack, &options).await.unwrap();
    findings.iter().filter(|finding| finding.is_violated()).map(|finding| finding.name).collect()
}

async fn reference_at_the_gateway(harness: &Harness, payment_id: Uuid) -> String {
    let ledger = harness.client.gateway_ledger().await.unwrap();
    let line = ledger.iter().find(|line| line["reference"] == payment_id.to_string()).unwrap();
    line["provider_reference"].as_str().unwrap().to_owned()
}

/// One after the other, so that the audit's findings are of each alone. What has no row is parked after a minute: the hold without a
/// payment has two such events, and the second one waits beside the others.
#[tokio::test]
async fn what_an_attack_has_left_without_an_end_is_named_and_ended() {
    let harness = Harness::alone().await;
    let released = a_hold_without_a_payment_is_released(&harness).await;
    let charges = async {
        a_charge_that_names_another_user_is_ended_as_what_the_gateway_charged(&harness).await;
        a_charge_of_another_amount_is_ended_once_the_gateway_has_given_it_back(&harness).await;
    };
    let ((), released) = tokio::join!(charges, parked("payments", released));
    act("dismiss", "payments", &released).await;
    harness.adds_up().await;
}

async fn a_charge_that_names_another_user_is_ended_as_what_the_gateway_charged(harness: &Harness) {
    let user = harness.client.user_with(1_000).await.unwrap();
    let stranger = harness.client.user_with(1_000).await.unwrap();
    let payment_id = attacked(harness, user, (stranger, 400)).await;
    // The true message is another charge to the processor, and the forged result is of a hold that is not there.
    let work = parked("processor", payment_id).await;
    let result = parked("balance", payment_id).await;
    let found = violated(harness).await;
    for check in ["M6", "S1", "T6 parked"] {
        assert!(found.contains(check), "{check} is not among {found:?}");
    }
    let stuck = json(&["stuck", "--older-than", "0s"]).await;
    let stuck: Vec<&Value> = stuck["payments"].as_array().unwrap().iter().collect();
    let ours = stuck.iter().find(|payment| payment["payment_id"] == payment_id.to_string()).unwrap();
    assert_eq!(ours["service"], "operator", "{ours}");

    let reference = reference_at_the_gateway(harness, payment_id).await;
    let confirmed = resolve(payment_id, &["--succeeded", &reference, "--amount", "400"]).await;
    assert_eq!(confirmed["before"]["user_id"], stranger.to_string(), "{confirmed}");
    assert_eq!(confirmed["after"]["user_id"], user.to_string(), "{confirmed}");
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(payment["status"], "completed");
    assert_eq!(harness.client.balance(user).await.unwrap(), (600, 0));
    assert_eq!(harness.client.balance(stranger).await.unwrap(), (1_000, 0), "nobody else pays");

    assert_eq!(act("retry", "processor", &work).await["outcome"], "already", "the charge is its own now");
    act("dismiss", "balance", &result).await;
}

async fn a_charge_of_another_amount_is_ended_once_the_gateway_has_given_it_back(harness: &Harness) {
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = attacked(harness, user, (user, 401)).await;
    let (work, result) = (parked("processor", payment_id).await, parked("balance", payment_id).await);
    let found = violated(harness).await;
    for check in ["M6", "S1", "T6 parked"] {
        assert!(found.contains(check), "{check} is not among {found:?}");
    }
    let (id, reference) = (payment_id.to_string(), reference_at_the_gateway(harness, payment_id).await);
    // What stands is not what was held: capturing it would take another amount than was charged.
    let propose = ["resolve", "propose", &id, "--operator", "alice", "--reason", "a test"];
    let refused = refusal(&[&propose[..], &["--succeeded", &reference, "--amount", "401"]].concat()).await;
    assert!(refused.contains("another amount"), "{refused}");

    let http = http();
    let void = format!("{}/charges/{payment_id}/void", harness.stack.gateway_url);
    let voided = http.post(void).json(&json!({})).send().await.unwrap();
    assert!(voided.status().is_success(), "{voided:?}");
    let confirmed = resolve(payment_id, &["--declined", "voided"]).await;
    assert_eq!((&confirmed["before"]["amount"], &confirmed["after"]["amount"]), (&401.into(), &400.into()));
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!((&payment["status"], &payment["reason"]), (&"failed".into(), &"declined:voided".into()));
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000, 0));

    act("dismiss", "processor", &work).await;
    act("dismiss", "balance", &result).await;
}

/// A hold as balance-svc makes it, of a payment that the payments database does not have: its row was lost in a restore.
async fn hold_without_a_payment(harness: &Harness, user: Uuid) -> Uuid {
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let pool = saga::postgres::pool(&format!("{server}/balance"), 1, "e2e").unwrap();
    let terms =
        Terms { amount: 400, service_id: harness.stack.demo_service_id.as_str().into(), client_number: None };
    let payment_id = Uuid::now_v7();
    let event = Event::Initiated { terms };
    let command = Command { user_id: user, payment_id, traceparent: None, detail: None, event };
    let park = |_: usize, reason: &str| -> Parked { panic!("{reason}") };
    let owned = Router::one(pool).ownership(&[user]).await.unwrap();
    let outcome = balance_svc::store::apply(&owned, &[&command], &[], park).await.unwrap();
    assert_eq!(outcome.applied.applied, 1);
    payment_id
}

/// The payment whose release is still to be parked: there is no payment that it could belong to.
async fn a_hold_without_a_payment_is_released(harness: &Harness) -> Uuid {
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = hold_without_a_payment(harness, user).await;
    let held = parked("payments", payment_id).await;
    let found = violated(harness).await;
    for check in ["M4", "R", "T6 parked"] {
        assert!(found.contains(check), "{check} is not among {found:?}");
    }
    let (id, owner) = (payment_id.to_string(), user.to_string());
    let propose = ["resolve", "propose", &id, "--operator", "alice", "--reason", "a test", "--never-made"];
    let refused = refusal(&propose).await;
    assert!(refused.contains("--user"), "{refused}");

    resolve(payment_id, &["--user", &owner, "--never-made"]).await;
    let began = Instant::now();
    while harness.client.balance(user).await.unwrap() != (1_000, 0) {
        assert!(began.elapsed() < WAIT_TIMEOUT, "the hold is not released");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    act("dismiss", "payments", &held).await;
    payment_id
}

#[tokio::test]
async fn an_unknown_charge_is_ended_by_two_operators_and_never_by_one() {
    let harness = Harness::shared().await;
    let since = Timestamp::now();
    let user = harness.client.user_with(1_000).await.unwrap();
    // The gateway charges, and answers neither the call nor an inquiry.
    let payment_id = harness.client.pay(user, "0812-thenhttp500-askhttp500x1000000", 400).await.unwrap();
    harness.charge(payment_id, "status = 'unknown'").await;
    let (id, reference) = (payment_id.to_string(), reference_at_the_gateway(&harness, payment_id).await);
    let stuck = json(&["stuck", "--older-than", "0s", "--within", "1h"]).await;
    let ours =
        stuck["payments"].as_array().unwrap().iter().find(|payment| payment["payment_id"] == id).unwrap();
    assert_eq!(ours["service"], "gateway", "{ours}");
    assert!(ours["last_error"].as_str().is_some_and(|error| error.contains("http_500")), "{ours}");

    let evidence = ["--succeeded", &reference, "--amount", "400"];
    let propose = [
        &["resolve", "propose", &id, "--operator", "alice", "--reason", "in its ledger", "--key", "1"][..],
        &evidence,
    ]
    .concat();
    let proposal = json(&propose).await;
    assert_eq!(json(&propose).await, proposal, "the same again is the same proposal");
    let resolution_id = proposal["resolution_id"].as_str().unwrap();
    let confirm = ["resolve", "confirm", resolution_id, "--reason", "in its ledger", "--operator"];
    let refused = refusal(&[&confirm[..], &["alice"]].concat()).await;
    assert!(refused.contains("another operator"), "{refused}");
    harness.charge(payment_id, "status = 'unknown'").await;
    let confirmed = json(&[&confirm[..], &["bob"]].concat()).await;
    assert_eq!(json(&[&confirm[..], &["bob"]].concat()).await, confirmed, "nor is it confirmed twice");
    let refused = refusal(&[&confirm[..], &["carol"]].concat()).await;
    assert!(refused.contains("bob has confirmed"), "{refused}");
    let proposed = emitted(&harness, since, "resolution.proposed.v1", resolution_id).await;
    assert_eq!((&proposed["payment_id"], &proposed["operator"]), (&id.as_str().into(), &"alice".into()));
    let confirmed = emitted(&harness, since, "resolution.confirmed.v1", resolution_id).await;
    assert_eq!((&confirmed["operator"], &confirmed["outcome"]), (&"bob".into(), &"applied".into()));

    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(payment["status"], "completed");
    assert_eq!(harness.client.balance(user).await.unwrap(), (600, 0));
    harness.charge(payment_id, "version = 3").await;
    let listed = json(&["resolve", "list", "--payment", &id, "--all"]).await;
    let listed = &listed["resolutions"][0];
    assert_eq!((&listed["proposed_by"], &listed["confirmed_by"]), (&"alice".into(), &"bob".into()));
    let life = coroctl::explain::life(&harness.stack, payment_id).await.unwrap().to_string();
    assert!(life.contains("succeeded, by bob: in its ledger"), "{life}");
    // What has ended is not resolved once more.
    let again = refusal(
        &[&["resolve", "propose", &id, "--operator", "alice", "--reason", "x"][..], &evidence].concat(),
    )
    .await;
    assert!(again.contains("nothing to resolve"), "{again}");
}
