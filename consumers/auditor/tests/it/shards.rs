//! Services with two databases each. A user's payments, money and charges are on shards that differ in name and in number.

use auditor::checks::Check;

use crate::harness::Harness;
use crate::relay::Fate;
use crate::second::{SERVICES, user_on};

#[tokio::test(flavor = "multi_thread")]
async fn users_on_two_shards_are_examined_and_what_is_wrong_on_the_second_is_found() {
    let mut harness = Harness::sharded().await;
    let running = harness.start().await;
    let users = [harness.with_money(user_on(0)).await, harness.with_money(user_on(1)).await];
    for round in 0..60 {
        harness.pay(users[round % 2]).await;
    }
    harness.until_done(&running, users[0]).await;
    running.until("every payment is examined", |running| running.examined("payment") >= 60).await;
    assert_eq!(running.all(), []);

    let statement = "update accounts set available = available + 1 where user_id = $1";
    harness.of(1, users[1]).execute(statement, &[&users[1]]).await.unwrap();
    harness.until_violated(&running, users[0], Check::M3, 1).await;
    assert_eq!(running.all(), [("M3", 1)]);
    // The second database of payments has its own relay, and its own place in the look at new rows.
    let life = harness.complete(users[0], 100).await;
    harness.emit(&life, Fate::NeverEmitted);
    let other = harness.with_money(user_on(1)).await;
    harness.complete(other, 100).await;
    harness.until_violated(&running, users[0], Check::T1, 2).await;
    assert_eq!(running.all(), [("M3", 1), ("T1", 2)]);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_relay_of_a_shard_stands_still_nothing_of_it_is_missing() {
    let mut harness = Harness::sharded().await;
    let running = harness.start().await;
    let users = [harness.with_money(user_on(0)).await, harness.with_money(user_on(1)).await];
    harness.until_done(&running, users[0]).await;
    let second = harness.second.as_mut().unwrap();
    let standing = second.slot(0, 1).to_owned();
    second.standing.push(standing);
    let late = harness.complete(users[1], 100).await;
    let before = running.examined("payment");
    // That it is found missing on the other shard takes as long as it would take here.
    let missing = harness.complete(users[0], 100).await;
    harness.emit(&missing, Fate::NeverEmitted);
    harness.until_violated(&running, users[0], Check::T1, 1).await;
    assert!(running.examined("payment") > before);
    assert_eq!(running.all(), [("T1", 1)]);

    harness.second.as_mut().unwrap().standing.clear();
    harness.emit(&late, Fate::Emitted);
    harness.until_done(&running, users[0]).await;
    assert_eq!(running.all(), [("T1", 1)]);
    running.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_users_are_followed_and_what_a_move_leaves_behind_is_none_of_their_rows() {
    let mut harness = Harness::sharded().await;
    let running = harness.start().await;
    let users = [harness.with_money(user_on(0)).await, harness.with_money(user_on(1)).await];
    for round in 0..6 {
        for user in users {
            harness.pay(user).await;
        }
        let service = round % 3;
        // What nobody owns is not examined, and not reported.
        let life = harness.complete(users[1], 100).await;
        harness.fence(service, users[1]).await;
        harness.emit(&life, Fate::Emitted);
        let passes = running.passes();
        running.until("a pass without an owner", |running| running.passes() > passes + 1).await;
        harness.grant(service, users[1]).await;
        harness.pay(users[0]).await;
        assert_eq!(running.all(), [], "after the move of {}", SERVICES[service]);
    }
    harness.until_done(&running, users[1]).await;
    assert_eq!(running.all(), []);
    // Each service was moved away and back, and payments and balance are compared as ever.
    let life = harness.complete(users[1], 100).await;
    harness.emit(&life, Fate::NeverEmitted);
    harness.until_violated(&running, users[1], Check::T1, 1).await;
    running.stop().await;

    // A restart begins with one mark for all buckets, and follows the marks of shards again.
    harness.fence(0, users[1]).await;
    harness.grant(0, users[1]).await;
    let running = harness.start().await;
    harness.until_done(&running, users[1]).await;
    assert!(running.all().iter().all(|(check, _)| *check == "T1"), "{:?}", running.all());
    running.stop().await;
    harness.finish().await;
}
