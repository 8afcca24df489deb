//! What operators read and do by `coroctl`: found, listed, retried and dismissed, by an operator with a name and the token.

use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use saga::contract::{BALANCE_TOPIC, HEADER_TYPE};
use serde_json::{Value, json as object};
use uuid::Uuid;

use super::command::{act, coroctl, emitted, json, refusal};
use super::{JSON, address, bearer};
use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, producer};
use crate::raw_http::request;

/// Produces an event to BalanceTopic that payments-svc parks; returns its parked_id once it is there.
async fn park(harness: &Harness, user: Uuid, kind: &str, body: &str) -> String {
    let headers = OwnedHeaders::new()
        .insert(Header { key: EXPLAINED.0, value: Some(EXPLAINED.1) })
        .insert(Header { key: HEADER_TYPE, value: Some(kind) });
    let key = user.to_string();
    let record = FutureRecord::to(BALANCE_TOPIC).key(&key).payload(body).headers(headers);
    let at = producer().send(record, WAIT_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
    let parked_id = format!("{BALANCE_TOPIC}/{}/{}", at.partition, at.offset);
    let client = coroctl::databases::connect(&harness.stack.payments_database_url).await.unwrap();
    let query = "select from parked where parked_id = $1";
    let appears = async {
        while client.query_opt(query, &[&parked_id]).await.unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, appears).await.unwrap();
    parked_id
}

fn ids(listed: &Value, list: &str, member: &str) -> Vec<String> {
    listed[list].as_array().unwrap().iter().map(|one| one[member].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn payments_are_found_by_what_is_known_of_them_a_page_at_a_time() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let number = format!("n{}", Uuid::new_v4().simple());
    let mut settled = Vec::new();
    for client_number in [number.as_str(), "0812-decline", number.as_str()] {
        let payment = harness.settle(user, client_number, 100).await;
        settled.push(payment["payment_id"].as_str().unwrap().to_owned());
    }
    let newest_first: Vec<String> = settled.iter().rev().cloned().collect();
    let owner = user.to_string();
    let found = async |arguments: &[&str]| {
        let page = json(&[&["find"], arguments].concat()).await;
        (ids(&page, "payments", "payment_id"), page["next"].as_str().map(str::to_owned))
    };
    assert_eq!(found(&["--user", &owner]).await.0, newest_first);
    assert_eq!(found(&["--payment", &settled[1]]).await.0, [settled[1].clone()]);
    assert_eq!(found(&["--client-number", &number]).await.0, [settled[2].clone(), settled[0].clone()]);
    assert_eq!(found(&["--user", &owner, "--status", "failed"]).await.0, [settled[1].clone()]);
    assert_eq!(found(&["--client-number", &number, "--older-than", "1h"]).await.0, Vec::<String>::new());
    assert_eq!(found(&["--client-number", &number, "--newer-than", "1h"]).await.0.len(), 2);
    let (mut pages, mut next) = (Vec::new(), None::<String>);
    loop {
        let after: Vec<&str> = next.iter().flat_map(|next| ["--after", next.as_str()]).collect();
        let (page, more) = found(&[&["--user", &owner, "--limit", "2"], after.as_slice()].concat()).await;
        pages.extend(page);
        next = more;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(pages, newest_first, "pages neither repeat nor leave out a payment");
    let table = coroctl(&["find", "--user", &owner]).await;
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(settled.iter().all(|id| text.contains(id.as_str())) && text.contains("3 payments"), "{text}");
    let refused = refusal(&["find", "--payment", &Uuid::new_v4().to_string()]).await;
    assert!(refused.contains("version 7"), "{refused}");
}

#[tokio::test]
async fn a_parked_message_is_retried_or_dismissed_once_and_never_dismissed_while_it_can_be_applied() {
    let harness = Harness::shared().await;
    let since = Timestamp::now();
    let user = harness.client.user_with(1_000).await.unwrap();
    let unreadable = park(&harness, user, "balance.held.v1", "not json").await;
    assert!(
        ids(
            &json(&["parked", "list", "--database", "payments", "--limit", "1000"]).await,
            "parked",
            "parked_id"
        )
        .contains(&unreadable)
    );
    let shown = json(&["parked", "show", "payments", &unreadable]).await;
    assert_eq!((&shown["body"], &shown["headers"]["explained"]), (&"not json".into(), &"e2e".into()));

    let named = ["--operator", "alice", "--reason", "a test"];
    let refused = refusal(&[&["parked", "retry", "payments", &unreadable][..], &named].concat()).await;
    assert!(refused.contains("cannot be applied"), "{refused}");
    let dismissed = act("dismiss", "payments", &unreadable).await;
    assert_eq!((&dismissed["act"], &dismissed["operator"]), (&"dismissed".into(), &"alice".into()));
    let again =
        json(&["parked", "dismiss", "payments", &unreadable, "--operator", "bob", "--reason", "too"]).await;
    assert_eq!(again, dismissed, "it was Alice, and once");
    let open = json(&["parked", "list", "--database", "payments", "--limit", "1000"]).await;
    assert!(!ids(&open, "parked", "parked_id").contains(&unreadable));
    let shown = json(&["parked", "show", "payments", &unreadable]).await;
    assert_eq!(shown["acts"][0]["reason"], "after an attack", "{shown}");
    let event = emitted(&harness, since, "message.dismissed.v1", &unreadable).await;
    assert_eq!((&event["operator"], &event["reason"]), (&"alice".into(), &"after an attack".into()));
    let unknown =
        refusal(&[&["parked", "dismiss", "payments", "BalanceTopic/0/999999999"][..], &named].concat()).await;
    assert!(unknown.contains("parked_id"), "{unknown}");
}

#[tokio::test]
async fn an_act_needs_the_token_and_a_name() {
    let harness = Harness::shared().await;
    let stack = &harness.stack;
    let token = bearer(&harness);
    let operator = ("authorization", token.as_str());
    let resolution = format!("POST /resolutions/{}/confirm HTTP/1.1", Uuid::new_v4());
    for (door, line) in [
        (&stack.payments_admin_url, "POST /parked/retry HTTP/1.1"),
        (&stack.payments_2_admin_url, "POST /parked/dismiss HTTP/1.1"),
        (&stack.balance_admin_url, "POST /parked/retry HTTP/1.1"),
        (&stack.processor_admin_url, "POST /parked/dismiss HTTP/1.1"),
        (&stack.processor_admin_url, "POST /resolutions HTTP/1.1"),
        (&stack.processor_admin_url, resolution.as_str()),
    ] {
        let host = ("host", address(door));
        let given = object!({"parked_id": "x/0/0", "operator": "alice", "reason": "a test"}).to_string();
        let answer = request(door, line, &[host, JSON], &given).await;
        answer.expect_problem(401, "unauthorized", line);
        for operator_name in ["", "Alice", "al ice"] {
            let given =
                object!({"parked_id": "x/0/0", "operator": operator_name, "reason": "a test"}).to_string();
            let answer = request(door, line, &[host, JSON, operator], &given).await;
            answer.expect_problem(400, "validation", line);
        }
    }
    let door = &stack.processor_admin_url;
    let host = ("host", address(door));
    let known = object!({"operator": "alice", "reason": "a test"}).to_string();
    request(door, &resolution, &[host, JSON, operator], &known).await.expect_problem(
        404,
        "not-found",
        "no proposal",
    );
}
