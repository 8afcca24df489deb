//! Clients that follow a payment without an event, for longer than anybody in between leaves a connection silent.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;

use crate::following::{Follower, expect_story, parse};
use crate::harness::{Harness, WAIT_TIMEOUT};

/// The gateway cannot be called for this long: longer than the 35 seconds after which the edge gives a silent service up.
const PENDING: Duration = Duration::from_secs(45);
/// The interval of the comments on a stream, and what a busy machine adds.
const HEARTBEAT_MAX: Duration = Duration::from_secs(15 + 3);
const WAIT: Duration = Duration::from_millis(25_000);

#[tokio::test]
async fn a_stream_is_kept_alive_at_the_edge_and_the_longest_wait_is_answered() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let number = format!("0812-soft{}", PENDING.as_millis());
    let payment_id = harness.client.pay(user, &number, 100).await.unwrap();
    harness.client.wait_for_status(user, payment_id, "authorized", WAIT_TIMEOUT).await.unwrap();
    let follower = Follower::new(user);
    let url = format!("{}/payments/{payment_id}", harness.stack.edge_url);

    let wait = async {
        let began = Instant::now();
        let answer = follower.get(&format!("{url}?wait={}", WAIT.as_millis()), None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.json::<Value>().await.unwrap()["status"], "authorized");
        assert!(began.elapsed() >= WAIT, "it was answered after {:?}", began.elapsed());
    };
    let follow = async {
        let mut stream = follower.get(&format!("{url}/events"), None).await;
        let (mut text, mut last, mut longest) = (String::new(), Instant::now(), Duration::ZERO);
        while let Some(chunk) = stream.chunk().await.unwrap() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(longest <= HEARTBEAT_MAX, "nothing came for {longest:?}: {text}");
        let comments = text.lines().filter(|line| line.starts_with(':')).count();
        assert!(comments >= 2, "{comments} comments: {text}");
        let events: Vec<_> = text.split("\n\n").filter_map(parse).collect();
        expect_story(&events, 0);
    };
    tokio::join!(wait, follow);
}
