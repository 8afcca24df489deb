//! Runs `coroctl` as operators do.

use std::process::{Command, Output};
use std::time::Duration;

use coroctl::topics;
use jiff::Timestamp;
use saga::contract::OPERATOR_TOPIC;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, binary};

/// Runs the command to its end.
pub async fn coroctl(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || Command::new(binary("coroctl")).args(&arguments).output().unwrap();
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The JSON document that a command prints.
pub async fn json(arguments: &[&str]) -> Value {
    let output = coroctl(&[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
}

/// The error of a command that is refused.
pub async fn refusal(arguments: &[&str]) -> String {
    let output = coroctl(arguments).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Alice proposes, and Bob confirms. `evidence`: the options that say how the charge ended.
pub async fn resolve(payment_id: Uuid, evidence: &[&str]) -> Value {
    let id = payment_id.to_string();
    let propose = ["resolve", "propose", &id, "--operator", "alice", "--reason", "seen at the gateway"];
    let proposal = json(&[&propose, evidence].concat()).await;
    let resolution_id = proposal["resolution_id"].as_str().unwrap();
    json(&["resolve", "confirm", resolution_id, "--operator", "bob", "--reason", "seen there too"]).await
}

/// Retries or dismisses a parked message.
pub async fn act(act: &str, database: &str, parked_id: &str) -> Value {
    json(&["parked", act, database, parked_id, "--operator", "alice", "--reason", "after an attack"]).await
}

/// The parked messages of a database that wait for an operator and are about this payment.
pub async fn parked_about(database: &str, payment_id: Uuid) -> Vec<String> {
    let list = json(&["parked", "list", "--database", database, "--limit", "1000"]).await;
    let id = payment_id.to_string();
    let ours = list["parked"].as_array().unwrap().iter().filter(|message| message["subject"] == id);
    ours.map(|message| message["parked_id"].as_str().unwrap().to_owned()).collect()
}

/// The event of this type about this subject, once it is on OperatorTopic.
pub async fn emitted(harness: &Harness, since: Timestamp, event_type: &str, subject: &str) -> Value {
    let look = || async {
        let (brokers, subject) = (harness.stack.kafka_brokers.clone(), subject.to_owned());
        let read = move || topics::about(&brokers, &[OPERATOR_TOPIC], since, &subject).unwrap();
        let events = tokio::task::spawn_blocking(read).await.unwrap();
        events.into_iter().find(|event| event.event_type() == event_type)
    };
    let appears = async {
        loop {
            if let Some(event) = look().await {
                return event.json().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, appears)
        .await
        .unwrap_or_else(|_| panic!("no {event_type} of {subject}"))
}
