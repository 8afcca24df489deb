//! The command as an operator or a script meets it: what it prints, and its exit codes.

use std::process::{Command, Output};

use serde_json::Value;

use crate::fixture::{Fixture, begin};

/// `audit ARGUMENTS` without the address of any stack.
fn audit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coroctl"));
    command.env_clear().arg("audit").args(arguments).output().unwrap()
}

fn checks(output: &Output) -> Vec<Value> {
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    answer["checks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn connection_strings_are_enough_and_the_exit_code_is_the_answer() {
    let fixture = Fixture::new().await;
    let urls = fixture.checker_urls();
    let [payments, balance, processor] = &urls;
    let targets = [
        "--payments-database-url",
        payments,
        "--balance-database-url",
        balance,
        "--processor-database-url",
        processor,
        "--wait",
        "0",
    ];
    let clean = audit(&targets);
    let text = String::from_utf8_lossy(&clean.stdout).into_owned();
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    assert!(text.contains("KAFKA_BROKERS is not given") && text.contains("were skipped."), "{text}");
    let open = "update payments set status = 'authorized', completed_at = null where amount = 100";
    let mut clients = fixture.superusers().await;
    let [planted, _, _] = begin(&mut clients).await;
    planted.batch_execute(open).await.unwrap();
    planted.commit().await.unwrap();
    let violated = audit(&[&targets[..], &["--json"]].concat());
    assert_eq!(violated.status.code(), Some(1), "{violated:?}");
    let checks = checks(&violated);
    let s1 = checks.iter().find(|check| check["name"] == "S1").unwrap();
    assert_eq!((s1["violations"].as_u64(), s1["examined"].as_u64()), (Some(1), Some(6)), "{s1}");
    assert!(s1["first"].as_str().unwrap().ends_with("still authorized"), "{s1}");
    assert!(checks.iter().any(|check| check["skipped"].is_string()));
    let live = audit(&[&targets[..], &["--live"]].concat());
    assert_eq!(live.status.code(), Some(0), "an open payment is no fault under load: {live:?}");
    drop(clients);
    fixture.finish().await;
}

#[test]
fn an_audit_that_cannot_be_made_is_neither_a_violation_nor_a_success() {
    let nowhere = audit(&["--payments-database-url", "postgres://x@127.0.0.1:9/x"]);
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("PAYMENTS_DATABASE_URL"), "{nowhere:?}");
    let nothing = audit(&[]);
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    let typo = audit(&["--livve"]);
    assert_eq!(typo.status.code(), Some(2), "{typo:?}");
    let no_file = audit(&["--accepted", "/nowhere/ids"]);
    assert_eq!(no_file.status.code(), Some(2), "{no_file:?}");
}
