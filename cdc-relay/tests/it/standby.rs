//! Two relays on one slot.

use std::time::{Duration, Instant};

use crate::kafka::{chain, distinct};
use crate::rig::Rig;

#[tokio::test]
async fn a_second_relay_waits_and_takes_over_without_loss() {
    let mut rig = Rig::new("standby").await;
    let first = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    distinct(&rig.topic(), 1).await;
    let second = rig.start();
    second.state("standby").await;
    assert!(second.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    rig.row("a", 2, 1, "made").await;
    distinct(&rig.topic(), 2).await;
    let killed = Instant::now();
    first.kill();
    rig.row("a", 3, 1, "made").await;
    second.streams().await;
    let events = distinct(&rig.topic(), 3).await;
    assert!(killed.elapsed() < Duration::from_secs(5), "took {:?}", killed.elapsed());
    assert_eq!(chain(&events), 3);
}
