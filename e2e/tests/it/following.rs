//! Clients that follow a payment: `wait`, and the stream of its events, at the service and through the edge.

use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, http};

/// Long enough for the gateway's answer to come while a client waits.
const SLOW: &str = "0812-slow2000";

pub struct Follower {
    /// The header by which the service knows its user.
    identity: (&'static str, String),
    http: reqwest::Client,
}

impl Follower {
    pub fn new(user: Uuid) -> Self {
        Self { identity: ("x-user-id", user.to_string()), http: http() }
    }

    pub fn with_token(token: &str) -> Self {
        Self { identity: ("authorization", format!("Bearer {token}")), http: http() }
    }

    pub async fn get(&self, url: &str, last_event_id: Option<&str>) -> Response {
        let (name, value) = &self.identity;
        let mut request = self.http.get(url).header(*name, value);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        timeout(WAIT_TIMEOUT, request.send()).await.expect("an answer in time").unwrap()
    }

    /// Opens the stream of a payment.
    pub async fn open(&self, door: &str, payment_id: Uuid, last_event_id: Option<&str>) -> Events {
        let response = self.get(&format!("{door}/payments/{payment_id}/events"), last_event_id).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { response, text: String::new() }
    }
}

/// A stream of server-sent events.
pub struct Events {
    response: Response,
    /// What has come of the next event.
    text: String,
}

/// One event: its id, and its data.
#[derive(Debug)]
pub struct Event {
    pub id: i64,
    pub payment: Value,
}

impl Events {
    /// The next event with data; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(event) = parse(&block) {
                    return Some(event);
                }
                continue;
            }
            let chunk =
                timeout(WAIT_TIMEOUT, self.response.chunk()).await.expect("a word in time").unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    pub async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The event of a block of lines; `None` for a comment or a setting.
pub fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|text| text.trim_start())
    };
    let payment = serde_json::from_str(field("data")?).unwrap();
    assert_eq!(field("event"), Some("payment"));
    Some(Event { id: field("id").unwrap().parse().unwrap(), payment })
}

pub fn expect_story(events: &[Event], after: i64) {
    let ids: Vec<i64> = events.iter().map(|event| event.id).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "no version is repeated: {ids:?}");
    assert!(ids.iter().all(|id| *id > after), "none is sent again: {ids:?}");
    for event in events {
        assert_eq!(event.payment["version"], event.id);
    }
    assert_eq!(events.last().unwrap().payment["status"], "completed", "{events:?}");
}

#[tokio::test]
async fn a_wait_ends_with_the_payment() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    for door in [&harness.stack.edge_url, &harness.stack.payments_url] {
        let payment_id = harness.client.pay(user, SLOW, 100).await.unwrap();
        let follower = Follower::new(user);
        let answer = follower.get(&format!("{door}/payments/{payment_id}?wait=25000"), None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let payment: Value = answer.json().await.unwrap();
        assert_eq!(payment["status"], "completed", "{payment}");
        let again = follower.get(&format!("{door}/payments/{payment_id}?wait=25000"), None).await;
        assert_eq!(again.json::<Value>().await.unwrap(), payment, "an ended payment is answered at once");
    }
}

#[tokio::test]
async fn a_wait_that_is_over_answers_what_is_there() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, SLOW, 100).await.unwrap();
    let follower = Follower::new(user);
    let url = format!("{}/payments/{payment_id}", harness.stack.payments_url);
    let answer = follower.get(&format!("{url}?wait=1"), None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.json::<Value>().await.unwrap()["payment_id"], payment_id.to_string());
    for bad in ["wait=25001", "wait=-1", "wait=", "wait=1&wait=1", "await=1"] {
        assert_eq!(
            follower.get(&format!("{url}?{bad}"), None).await.status(),
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
    harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn a_stream_shows_each_state_once_and_ends_with_the_payment() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let follower = Follower::new(user);
    for door in [&harness.stack.edge_url, &harness.stack.payments_url] {
        let payment_id = harness.client.pay(user, SLOW, 100).await.unwrap();
        let events = follower.open(door, payment_id, None).await.rest().await;
        expect_story(&events, 0);
        assert!(events.len() >= 2, "a state before the end, and the end: {events:?}");
        let last = events.last().unwrap().id;
        let resumed = follower.open(door, payment_id, Some(&(last - 1).to_string())).await.rest().await;
        expect_story(&resumed, last - 1);
        assert_eq!(resumed.len(), 1);
        let ended =
            follower.get(&format!("{door}/payments/{payment_id}/events"), Some(&last.to_string())).await;
        assert_eq!(ended.status(), StatusCode::NO_CONTENT, "a client that has it all stops");
    }
}

#[tokio::test]
async fn a_stream_is_its_users_alone() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, "0812", 100).await.unwrap();
    let door = &harness.stack.payments_url;
    let url = format!("{door}/payments/{payment_id}/events");
    let other = Follower::new(Uuid::now_v7()).get(&url, None).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    let follower = Follower::new(user);
    for bad in ["x", "-1", "1.5"] {
        assert_eq!(follower.get(&url, Some(bad)).await.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    expect_story(&follower.open(door, payment_id, None).await.rest().await, 0);
}

/// The client comes again with the last id it has, as every EventSource does.
#[tokio::test]
async fn an_instance_that_stops_ends_its_streams_and_clients_go_on_at_another() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, "0812-slow5000", 100).await.unwrap();
    let follower = Follower::new(user);
    let mut stream = follower.open(&harness.stack.payments_url, payment_id, None).await;
    let first = stream.next().await.unwrap();
    harness.cargo_stack("restart", "payments-svc").await;
    let before: Vec<Event> = stream.rest().await;
    let last = before.last().map_or(first.id, |event| event.id);
    let events =
        follower.open(&harness.stack.edge_url, payment_id, Some(&last.to_string())).await.rest().await;
    expect_story(&events, last);
}

#[tokio::test]
async fn without_kafka_a_wait_answers_at_its_end_and_later_waits_are_woken_again() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.cargo_stack("kill", "kafka").await;
    let payment_id = harness.client.pay(user, "0812", 100).await.unwrap();
    let follower = Follower::new(user);
    let url = format!("{}/payments/{payment_id}", harness.stack.payments_url);
    let answer = follower.get(&format!("{url}?wait=1500"), None).await;
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], "initiated");
    let stream = follower.open(&harness.stack.payments_url, payment_id, None).await;
    harness.cargo_stack("restart", "kafka").await;
    expect_story(&stream.rest().await, 0);
}
