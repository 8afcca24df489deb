//! The read model as clients see it: what is found, and by whom.

mod faults;
mod tls;

use std::time::{Duration, Instant};

use coroctl::client::order;
use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, http};

/// What a search answers, at most this late: the service waits for the index twice for two seconds, and the machine may be busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    retry_after: Option<String>,
    body: Value,
}

/// `GET /payments/search` of a user with these parameters, through the edge. A 503 is repeated: the index may be busy.
async fn search(harness: &Harness, user: Uuid, parameters: &[(&str, &str)]) -> Answer {
    let began = Instant::now();
    loop {
        let answer = search_at(&harness.stack.edge_url, user, parameters).await;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE || began.elapsed() > WAIT_TIMEOUT {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The same once, at this listener.
async fn search_at(door: &str, user: Uuid, parameters: &[(&str, &str)]) -> Answer {
    let encoded: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
    let url = format!("{door}/payments/search?{}", encoded.join("&"));
    let began = Instant::now();
    let response = http().get(url).header("x-user-id", user.to_string()).send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.json().await.unwrap();
    assert!(began.elapsed() < ANSWER_TIMEOUT, "{:?}", began.elapsed());
    let retry_after = headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    Answer { status, retry_after, body }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The ids that a search finds on its first page.
async fn found(harness: &Harness, user: Uuid, parameters: &[(&str, &str)]) -> Vec<String> {
    let answer = search(harness, user, parameters).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    ids(&answer.body)
}

fn ids(page: &Value) -> Vec<String> {
    let payments = page["payments"].as_array().unwrap();
    payments.iter().map(|payment| payment["payment_id"].as_str().unwrap().to_owned()).collect()
}

/// Searches until it finds these ids, newest first.
async fn until_found(harness: &Harness, user: Uuid, parameters: &[(&str, &str)], expected: &[String]) {
    let began = Instant::now();
    loop {
        let answer = search(harness, user, parameters).await;
        if answer.status == StatusCode::OK && ids(&answer.body) == expected {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{parameters:?}: {}, not {expected:?}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn pay(harness: &Harness, user: Uuid, client_number: &str) -> String {
    harness.client.pay(user, client_number, 10).await.unwrap().to_string()
}

#[tokio::test]
async fn a_payment_is_found_by_number_and_service_newest_first_with_what_matched() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let mut newest_first = Vec::new();
    for number in ["0812-77", "0812 78", "5551234-decline"] {
        newest_first.insert(0, pay(&harness, user, number).await);
    }
    let [declined, second, first] = newest_first.clone().try_into().unwrap();
    until_found(&harness, user, &[("q", "electricity")], &newest_first).await;
    for (text, expected) in [
        ("elec", newest_first.clone()),
        ("ELECTRI 0812", vec![second.clone(), first.clone()]),
        ("081277", vec![first.clone()]),
        ("0812 7", vec![second.clone(), first.clone()]),
        ("0812 78", vec![second.clone()]),
        ("decl", vec![declined.clone()]),
        ("5551234-dec", vec![declined.clone()]),
        ("0812 water", vec![]),
        ("812", vec![]),
    ] {
        assert_eq!(found(&harness, user, &[("q", text)]).await, expected, "{text}");
    }
    harness.client.wait_for_end(user, declined.parse().unwrap(), WAIT_TIMEOUT).await.unwrap();
    until_found(&harness, user, &[("q", "elec"), ("status", "failed")], std::slice::from_ref(&declined))
        .await;
    assert_eq!(found(&harness, user, &[("q", "elec"), ("service_id", "water")]).await, [""; 0]);
    assert_eq!(found(&harness, user, &[("q", "elec"), ("to", "2020-01-01T00:00:00Z")]).await, [""; 0]);
    assert_eq!(found(&harness, user, &[("q", "elec"), ("from", "2020-01-01T00:00:00Z")]).await, newest_first);

    // The document is that of the payment, and says what matched.
    let page = search(&harness, user, &[("q", "elec 0812-77")]).await.body;
    let mut payment = page["payments"][0].clone();
    let highlight = payment.as_object_mut().unwrap().remove("highlight").unwrap();
    let expected = serde_json::json!({"client_number": "<em>0812</em>-<em>77</em>", "service_name": "<em>Elec</em>tricity"});
    assert_eq!(highlight, expected);
    let ended = harness.client.wait_for_end(user, first.parse().unwrap(), WAIT_TIMEOUT).await.unwrap();
    let began = Instant::now();
    while payment != ended {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{payment}, not {ended}");
        payment = search(&harness, user, &[("q", "0812-77")]).await.body["payments"][0].clone();
        payment.as_object_mut().unwrap().remove("highlight");
    }
}

#[tokio::test]
async fn pages_go_on_after_the_last_payment_whatever_comes_meanwhile() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let mut newest_first = Vec::new();
    for _ in 0..5 {
        newest_first.insert(0, pay(&harness, user, "0812").await);
    }
    until_found(&harness, user, &[("q", "0812")], &newest_first).await;
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut parameters = vec![("q", "0812"), ("limit", "2")];
        parameters.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page = search(&harness, user, &parameters).await.body;
        seen.extend(ids(&page));
        // One that comes meanwhile is before the first page.
        pay(&harness, user, "0812").await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(seen, newest_first);
}

#[tokio::test]
async fn nobody_finds_a_payment_of_another_user() {
    let harness = Harness::shared().await;
    let number = format!("shared{}", Uuid::new_v4().simple());
    let (mut users, mut own) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let user = harness.client.user_with(1_000).await.unwrap();
        own.push(pay(&harness, user, &number).await);
        users.push(user);
    }
    for (user, id) in users.iter().zip(&own) {
        until_found(&harness, *user, &[("q", &number)], std::slice::from_ref(id)).await;
    }
    let (me, other) = (users[0], users[1]);
    let attempts = [
        format!("{number} OR user_id:{other}"),
        format!("{number}\" || \"user_id\":\"{other}"),
        format!("user_id:{other}"),
        format!("{other}"),
        own[1].clone(),
        "*".to_owned(),
        "kind:payment".to_owned(),
    ];
    for text in &attempts {
        let found = search(&harness, me, &[("q", text)]).await;
        assert!(!ids(&found.body).contains(&own[1]), "{text}: {}", found.body);
    }
    // Another user's cursor leads nowhere else.
    let cursor = own[1].replace('-', "");
    let page = found(&harness, me, &[("q", &number), ("cursor", &cursor)]).await;
    assert_eq!(page, own[..1], "what is before it, of one's own");
}

#[tokio::test]
async fn an_odd_text_is_matched_as_it_is_or_refused_with_its_reason() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let odd = "a*b?~2 (x OR y) \"z\" <b>&amp; {\"a\":1} /r.*/ +p -m \\ 100%";
    assert!(odd.len() <= 64);
    let id = pay(&harness, user, odd).await;
    until_found(&harness, user, &[("q", "elec")], std::slice::from_ref(&id)).await;
    let more = format!("{odd} q");
    assert_eq!(found(&harness, user, &[("q", &more)]).await, [""; 0], "not all of it is in the number");
    let page = search(&harness, user, &[("q", odd)]).await.body;
    assert_eq!(ids(&page), [id], "{page}");
    let highlight = page["payments"][0]["highlight"]["client_number"].as_str().unwrap();
    assert!(!highlight.contains("<b>"), "what a client wrote is no HTML: {highlight}");
    for text in ["*", "?", "~", "\"", "(", "a AND", "NOT x", "\\", "/.*/", "[a TO z]", "\u{1f50c}", "..."] {
        let answer = search(&harness, user, &[("q", text)]).await;
        assert_eq!(answer.status, StatusCode::OK, "{text}: {}", answer.body);
    }
    // Percent-encoded it is three times as long, and still below the limit of a path.
    let long = "x".repeat(2_000);
    let refused: [(&[(&str, &str)], &str); 6] = [
        (&[], "q is required"),
        (&[("q", "")], "must have 1 to 100 characters"),
        (&[("q", &long)], "must have 1 to 100 characters"),
        (&[("q", "a\0b")], "must not contain control characters"),
        (&[("q", "a"), ("sort", "amount")], "is not a parameter"),
        (&[("q", "a"), ("cursor", "x")], "next_cursor"),
    ];
    for (parameters, reason) in refused {
        let answer = search(&harness, user, parameters).await;
        assert_eq!(
            (answer.status, &answer.body["type"]),
            (StatusCode::BAD_REQUEST, &"urn:coro:problem:validation".into())
        );
        let errors = answer.body["errors"].to_string();
        assert!(errors.contains(reason.trim_start_matches("q ")), "{errors}, not {reason}");
    }
}

#[tokio::test]
async fn a_service_is_found_by_its_new_name_and_no_longer_by_the_old_one() {
    let harness = Harness::shared().await;
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let operator = coroctl::databases::connect(&format!("{server}/payments")).await.unwrap();
    let service = format!("heat-{}", Uuid::new_v4().simple());
    operator
        .execute("insert into services (service_id, name) values ($1, 'Fernw\u{e4}rme')", &[&service])
        .await
        .unwrap();
    let user = harness.client.user_with(1_000).await.unwrap();
    let body = order("1", &service, 10, "key");
    let payment: Value = harness.client.post_payment(user, &body).await.unwrap().json().await.unwrap();
    let id = [payment["payment_id"].as_str().unwrap().to_owned()];
    until_found(&harness, user, &[("q", "fernwarme")], &id).await;
    let rename = "update services set name = 'District heat' where service_id = $1";
    operator.execute(rename, &[&service]).await.unwrap();
    until_found(&harness, user, &[("q", "DISTRICT he")], &id).await;
    assert_eq!(found(&harness, user, &[("q", "fern")]).await, [""; 0]);
}
