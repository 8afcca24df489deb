//! An auditor that was away goes on where it was.

use auditor::checks::Check;

use crate::harness::Harness;
use crate::relay::Fate;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_examines_what_came_meanwhile_and_not_what_was_examined() {
    let mut harness = Harness::new().await;
    let running = harness.start().await;
    let user = harness.user().await;
    for _ in 0..200 {
        harness.pay(user).await;
    }
    // Twice: the offsets are committed behind what is done with.
    harness.until_done(&running, user).await;
    harness.until_done(&running, user).await;
    let examined = running.examined("payment");
    assert!(examined >= 200, "{examined}");
    running.stop().await;

    let missing = harness.complete(user, 100).await;
    harness.emit(&missing, Fate::NeverEmitted);
    let lost = harness.complete(user, 100).await;
    harness.emit(&lost, Fate::Lost);
    harness.complete(user, 100).await;
    for _ in 0..20 {
        harness.pay(user).await;
    }
    let running = harness.start().await;
    // One pass was made since.
    assert!(
        running.examined("payment") < 150,
        "{} payments were examined again",
        running.examined("payment")
    );
    harness.until_violated(&running, user, Check::T1, 3).await;
    harness.until_violated(&running, user, Check::T1Chain, 1).await;
    assert_eq!(running.all(), [("T1", 3), ("T1 chain", 1)]);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_at_any_moment_report_nothing_that_is_not_so() {
    let mut harness = Harness::new().await;
    let mut running = harness.start().await;
    let user = harness.user().await;
    let mut examined = 0;
    for _ in 0..8 {
        for _ in 0..30 {
            harness.pay(user).await;
        }
        assert_eq!(running.all(), []);
        examined += running.examined("payment");
        running.stop().await;
        harness.pay(user).await;
        running = harness.start().await;
    }
    harness.until_done(&running, user).await;
    assert_eq!(running.all(), []);
    examined += running.examined("payment");
    assert!(examined >= 248, "{examined} of 248 payments were examined");
    running.stop().await;
    harness.finish().await;
}
