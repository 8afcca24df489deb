//! Runbooks: what they say to look at can be looked at, on the running stack.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use uuid::Uuid;

use crate::harness::{Harness, binary};

/// A script of this kind only reads.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Scripts of these programs need the environment of another process, or what a stack may not have.
const ELSEWHERE: [&str; 3] = ["cdc-relay ", "$NOTIFIER_", "dmesg"];

struct Script {
    page: String,
    text: String,
}

/// Those to look at something, and those to do something.
fn scripts() -> (Vec<Script>, Vec<Script>) {
    let (mut looks, mut acts) = (Vec::new(), Vec::new());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (name, text) = (path.display().to_string(), std::fs::read_to_string(&path).unwrap());
        // A page of planned changes is run by its own drill.
        if !text.contains("**Means.**") {
            continue;
        }
        for section in text.split("\n## ") {
            let (look, act) = section.split_once("**Do.**").unwrap_or((section, ""));
            let of = |part: &str| -> Vec<Script> {
                let blocks = part.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
                blocks.map(|text| Script { page: name.clone(), text: text.to_owned() }).collect()
            };
            looks.extend(of(look));
            acts.extend(of(act));
        }
    }
    (looks, acts)
}

#[tokio::test]
async fn what_is_to_be_looked_at_is_there() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    harness.client.deposit(user, 1_000, "runbooks").await.unwrap();
    let payment = harness.settle(user, "081234567890", 10).await;
    let folder = binary("coroctl").parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    let (looks, _) = scripts();
    let mut run = 0;
    for Script { page, text } in looks {
        if ELSEWHERE.iter().any(|program| text.contains(program)) {
            continue;
        }
        let mut command = Command::new("sh");
        command.args(["-euc", &text]).env("PATH", &path).env("USER_ID", user.to_string());
        command.env("PAYMENT_ID", payment["payment_id"].as_str().unwrap()).kill_on_drop(true);
        let output = tokio::time::timeout(LOOK_TIMEOUT, command.output()).await.expect(&text).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{page}: {text}{errors}");
        run += 1;
    }
    assert!(run > 25, "{run}");
}

#[tokio::test]
async fn every_command_that_is_named_exists() {
    let (looks, acts) = scripts();
    let mut seen = BTreeMap::<&str, usize>::new();
    for Script { page, text } in looks.iter().chain(&acts) {
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
