//! Runbooks: what they say to look at can be looked at, on the running stack.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use e2e::drill::runbook;
use tokio::process::Command;
use uuid::Uuid;

use crate::harness::{Harness, binary};

/// A script of this kind only reads.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Scripts of these programs need the environment of another process, or what a stack may not have.
const ELSEWHERE: [&str; 3] = ["cdc-relay ", "$NOTIFIER_", "dmesg"];

#[tokio::test]
async fn what_is_to_be_looked_at_is_there() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    harness.client.deposit(user, 1_000, "runbooks").await.unwrap();
    let payment = harness.settle(user, "081234567890", 10).await;
    let folder = binary("coroctl").parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    let mut run = 0;
    let sections = runbook::all().unwrap();
    let looks = sections.iter().flat_map(|section| section.looks.iter().map(|text| (&section.page, text)));
    for (page, text) in looks {
        if ELSEWHERE.iter().any(|program| text.contains(program)) {
            continue;
        }
        let mut command = Command::new("sh");
        command.args(["-euc", text]).env("PATH", &path).env("USER_ID", user.to_string());
        command.env("PAYMENT_ID", payment["payment_id"].as_str().unwrap()).kill_on_drop(true);
        let output = tokio::time::timeout(LOOK_TIMEOUT, command.output()).await.expect(text).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{page}: {text}{errors}");
        run += 1;
    }
    assert!(run > 25, "{run}");
}

#[tokio::test]
async fn every_command_that_is_named_exists() {
    let sections = runbook::all().unwrap();
    let all = sections.iter().map(|section| (&section.page, section.looks.iter().chain(&section.acts)));
    let mut seen = BTreeMap::<&str, usize>::new();
    for (page, text) in all.flat_map(|(page, scripts)| scripts.map(move |text| (page, text))) {
        for program in ["cdc-relay", "coroctl"] {
            for line in text.lines().filter_map(|line| line.trim_start().strip_prefix(program)) {
                let verb = line.split_whitespace().next().unwrap();
                let mut help = Command::new(binary(program));
                let help = help.args([verb, "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
                assert!(help.status().await.unwrap().success(), "{page}: {program} has no {verb}");
                *seen.entry(program).or_default() += 1;
            }
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}
