//! Each fault is planted under a load of payments that are as they should be.

use auditor::checks::Check;
use saga::contract::{LedgerEntry, PAYMENT_TOPIC, Payment};

use crate::harness::Harness;
use crate::relay::Fate;

#[tokio::test(flavor = "multi_thread")]
async fn payments_as_they_should_be_raise_nothing_and_are_all_examined() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let users = [harness.user().await, harness.user().await];
    for round in 0..100 {
        let life = harness.pay(users[round % 2]).await;
        // The relay emits at least once, and an operator may replay.
        if round % 10 == 0 {
            harness.relay.emit_again(&life.payment);
            harness.relay.emit_again(&life.hold);
        }
        // What operators do is a link of the chain as well.
        if round % 25 == 0 {
            for source in ["payments", "balance", "processor"] {
                harness.relay.emit_act(source);
            }
        }
    }
    harness.until_done(&running, users[0]).await;
    running.until("every payment is examined", |running| running.examined("payment") >= 100).await;
    assert_eq!(running.all(), []);
    assert!(running.examined("movement") >= 202 && running.examined("account") > 0);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_by_hand_is_found() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let [user, other] = [harness.user().await, harness.user().await];
    harness.pay(user).await;
    // An account that is off by one cent, of a user who does nothing more.
    harness.pay(other).await;
    harness.until_done(&running, user).await;
    assert_eq!(running.all(), []);
    let statement = "update accounts set available = available + 1 where user_id = $1";
    harness.balance().execute(statement, &[&other]).await.unwrap();
    harness.until_violated(&running, user, Check::M3, 1).await;
    assert_eq!(running.all(), [("M3", 1)]);

    // A movement of the ledger. The relay emits the changed row under the id that it had.
    let life = harness.pay(user).await;
    let statement = "update ledger set amount = amount + 1 where payment_id = $1 and phase = 2";
    harness.balance().execute(statement, &[&life.payment.payment_id]).await.unwrap();
    let changed = LedgerEntry { amount: life.capture.amount + 1, ..life.capture.clone() };
    harness.relay.emit(&changed, Fate::Emitted);
    harness.until_violated(&running, user, Check::M7, 1).await;
    harness.until_violated(&running, user, Check::M6, 1).await;
    harness.until_violated(&running, user, Check::R, 1).await;
    let others = [Check::T1, Check::T1Chain, Check::T2, Check::S2, Check::S4, Check::G4, Check::M4];
    assert!(others.iter().all(|check| running.violations(*check) == 0), "{:?}", running.all());
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_of_another_amount_is_found() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let user = harness.user().await;
    let life = harness.complete(user, 100).await;
    let statement = "update payments set amount = 101 where payment_id = $1";
    harness.payments().execute(statement, &[&life.payment.payment_id]).await.unwrap();
    let amount = |payment: &Payment| Payment { amount: 101, ..payment.clone() };
    let before = life.before.each_ref().map(amount);
    harness.emit(&crate::harness::Life { payment: amount(&life.payment), before, ..life }, Fate::Emitted);
    harness.until_violated(&running, user, Check::M6, 1).await;
    harness.until_violated(&running, user, Check::R, 1).await;
    harness.until_done(&running, user).await;
    assert_eq!(running.all(), [("M6", 1), ("R", 1)]);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_event_is_found_whoever_lost_it() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let user = harness.user().await;
    // The chain closes over what the relay passed over, so only the row shows it.
    let life = harness.complete(user, 100).await;
    harness.emit(&life, Fate::NeverEmitted);
    harness.until_violated(&running, user, Check::T1, 1).await;
    assert_eq!(running.all(), [("T1", 1)]);
    // A payment without any event.
    harness.complete(user, 100).await;
    harness.until_violated(&running, user, Check::T1, 2).await;
    assert_eq!(running.all(), [("T1", 2)]);
    // What Kafka lost is a gap of the chain as well.
    let life = harness.complete(user, 100).await;
    harness.emit(&life, Fate::Lost);
    harness.until_violated(&running, user, Check::T1Chain, 1).await;
    harness.until_violated(&running, user, Check::T1, 3).await;
    harness.until_done(&running, user).await;
    assert_eq!(running.all(), [("T1", 3), ("T1 chain", 1)]);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_and_what_may_not_follow_is_found() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let user = harness.user().await;
    let life = harness.pay(user).await;
    harness.relay.produce(PAYMENT_TOPIC, "payment.vanished.v1", "payments", &life.payment, None);
    harness.until_violated(&running, user, Check::T3, 1).await;
    assert_eq!(running.all(), [("T3", 1)]);
    // Completed, and then failed: its row says completed.
    let life = harness.pay(user).await;
    let failed = Payment {
        status: "failed".to_owned(),
        event: "failed".to_owned(),
        version: 4,
        completed_at: None,
        failed_at: life.payment.completed_at,
        ..life.payment.clone()
    };
    harness.relay.emit(&failed, Fate::Emitted);
    harness.until_violated(&running, user, Check::S2, 1).await;
    // An event ahead of its row.
    harness.until_violated(&running, user, Check::T3, 2).await;
    assert_eq!(running.all(), [("S2", 1), ("T3", 2)]);
    running.stop().await;
    harness.finish().await;
}
