//! The snippets of docs/SUBSCRIBE.md, each run as a subscriber runs it, and the records as the CloudEvents SDKs read them.
//!
//! * A snippet reads from the first event, prints each change once, and skips what an operator emits again.
//! * `e2e/subscribers` pins the tools of the other languages, which are installed at the first run.

use std::fmt::Write as _;
use std::process::Stdio;

use coroctl::topics::{self, SAGA_TOPICS};
use jiff::Timestamp;
use saga::contract::SERVICE_TOPIC;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use uuid::Uuid;

use crate::asyncapi::docs;
use crate::captured;
use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, binary};
use crate::notify::operate;
use crate::tools::Tools;

/// A snippet that runs, as the subscriber of the stack and in a group of its own.
struct Snippet {
    _child: Child,
    output: Lines<BufReader<ChildStdout>>,
    printed: Vec<String>,
}

impl Snippet {
    fn start(command: Command, harness: &Harness) -> Self {
        Self::with(command, &format!("{}/kafka/subscriber.properties", harness.stack.dir))
    }

    /// As whoever this file signs in.
    fn with(mut command: Command, kafka_config: &str) -> Self {
        command
            .env("KAFKA_CONFIG", kafka_config)
            .env("KAFKA_GROUP", format!("subscriber-{}", Uuid::new_v4()))
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, output, printed: Vec::new() }
    }

    /// Reads on until a line contains this.
    async fn until(&mut self, expected: &str) {
        let read = async {
            loop {
                let line = self.output.next_line().await.unwrap().expect("the snippet goes on");
                let found = line.contains(expected);
                self.printed.push(line);
                if found {
                    return;
                }
            }
        };
        let found = tokio::time::timeout(WAIT_TIMEOUT, read).await;
        assert!(found.is_ok(), "{expected} was not printed; printed: {:?}", self.printed);
    }
}

/// Pays twice; between the two an operator emits the first again.
async fn prints_each_change_once(command: Command) {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let pay = async || {
        let payment = harness.settle(user, "0812", 400).await;
        payment["payment_id"].as_str().unwrap().to_owned()
    };
    let first = pay().await;
    let mut snippet = Snippet::start(command, &harness);
    snippet.until(&format!("payment.completed.v1 {first} 3")).await;
    captured::replay(&harness, "payments", "payments", user).await;
    // Of the same user, so on the same partition, and read after what was emitted again.
    let second = pay().await;
    snippet.until(&format!("payment.completed.v1 {second} 3")).await;
    for payment in [first, second] {
        let printed: Vec<&String> = snippet.printed.iter().filter(|line| line.contains(&payment)).collect();
        let change = |(event, version)| format!("payment.{event}.v1 {payment} {version} 400");
        assert_eq!(printed, [("initiated", 1), ("authorized", 2), ("completed", 3)].map(change).each_ref());
    }
}

/// The snippets of docs/subscribe, and their tools.
static TOOLS: Tools = Tools::new("subscribers", &["docs/subscribe"]);

/// A program of the tools, run beside the snippets.
async fn tool(program: &str, argument: &str) -> Command {
    let mut command = TOOLS.program(program).await;
    command.arg(argument);
    command
}

#[tokio::test]
async fn the_snippet_in_rust_prints_each_change_once() {
    prints_each_change_once(Command::new(binary("examples/subscribe"))).await;
}

#[tokio::test]
async fn the_snippet_in_python_prints_each_change_once() {
    prints_each_change_once(tool("python/bin/python3", "subscribe.py").await).await;
}

#[tokio::test]
async fn the_snippet_in_typescript_prints_each_change_once() {
    let status =
        tool("node_modules/.bin/tsc", "--project").await.arg("tsconfig.json").status().await.unwrap();
    assert!(status.success(), "its types are right");
    prints_each_change_once(tool("node", "subscribe.ts").await).await;
}

#[tokio::test]
async fn the_snippet_for_kcat_prints_headers_and_values() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment = harness.settle(user, "0812", 400).await;
    let mut command = Command::new("sh");
    command.arg(docs("subscribe/subscribe.sh"));
    // A distribution's kcat may be too old to sign in: docs/SUBSCRIBE.md says so.
    let everybody = std::env::temp_dir().join(format!("everybody-{}.properties", Uuid::new_v4()));
    std::fs::write(&everybody, format!("bootstrap.servers={}\n", harness.stack.kafka_brokers)).unwrap();
    let mut snippet = Snippet::with(command, everybody.to_str().unwrap());
    let id = payment["payment_id"].as_str().unwrap();
    snippet.until(&format!("ce_id=payments/payments/{id}/3")).await;
    snippet.until(id).await;
    std::fs::remove_file(everybody).unwrap();
}

#[tokio::test]
async fn asyncapis_own_parser_accepts_the_document() {
    let mut command = tool("node", "asyncapi.mjs").await;
    let output = command.arg(docs("asyncapi.yaml").canonicalize().unwrap()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn webhooks_are_verified_by_the_library_of_another_language_and_handled_once() {
    // An endpoint is notified of every payment, those of other tests too.
    let harness = Harness::alone().await;
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let channel = format!("/endpoints/python-{port}");
    let url = json!({"url": format!("http://127.0.0.1:{port}/hooks")});
    let created = operate(&harness, "PUT", &channel, &url).await;
    let mut command = tool("python/bin/python3", "webhook.py").await;
    command.env("WEBHOOK_SECRET", created["secret"].as_str().unwrap()).env("PORT", port.to_string());
    let mut snippet = Snippet::start(command, &harness);
    let user = harness.client.user_with(1_000).await.unwrap();
    let settle = async |client_number: &str| {
        let payment = harness.settle(user, client_number, 400).await;
        payment["payment_id"].as_str().unwrap().to_owned()
    };
    let first = settle("0812").await;
    snippet.until(&format!("payment.completed.v1 {first} completed 400")).await;
    operate(&harness, "POST", "/replay", &json!({"payment_id": first})).await;
    let second = settle("0812-decline").await;
    snippet.until(&format!("payment.failed.v1 {second} failed 400")).await;
    operate(&harness, "DELETE", &channel, &Value::Null).await;
    assert_eq!(snippet.printed.iter().filter(|line| line.contains(&first)).count(), 1);
}

/// The alerts of consumers/fraud.
const FRAUD_ALERT_TOPIC: &str = "FraudAlertTopic";

/// Gives all records that subscribers may read to a parser, which answers how many it read.
async fn parses_every_record(program: &str, script: &str) {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.settle(user, "0812", 400).await;
    let brokers = harness.stack.kafka_brokers.clone();
    let all = [&SAGA_TOPICS[..], &[SERVICE_TOPIC, FRAUD_ALERT_TOPIC]].concat();
    let read = move || topics::read(&brokers, &all, Timestamp::UNIX_EPOCH).unwrap();
    let mut events = tokio::task::spawn_blocking(read).await.unwrap();
    events.retain(|event| event.header(EXPLAINED.0) != EXPLAINED.1);
    let lines = events.iter().fold(String::new(), |mut lines, event| {
        let value = Value::from(String::from_utf8_lossy(&event.value));
        let record = json!({ "key": event.key, "headers": event.headers, "value": value });
        writeln!(lines, "{record}").unwrap();
        lines
    });
    let mut child = tool(program, script).await.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let write = tokio::spawn(async move { input.write_all(lines.as_bytes()).await });
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{script} refused a record");
    write.await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), events.len().to_string());
}

#[tokio::test]
async fn the_cloudevents_sdk_of_javascript_parses_every_record() {
    parses_every_record("node", "parse.mjs").await;
}

#[tokio::test]
async fn the_cloudevents_sdk_of_python_parses_every_record() {
    parses_every_record("python/bin/python3", "parse.py").await;
}
