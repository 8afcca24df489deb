//! Tests the dashboard, the alerts and the log.
//!
//! * A real Prometheus that scrapes a relay under load answers each query of the dashboard and of the alerts.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Harness, Relay, eventually};
use crate::kafka::distinct;

/// Time for two scrapes and a check of the slot on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

fn compose(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose").join(name)
}

/// A Prometheus with our rules, which scrapes one relay every second and ends when dropped.
struct Prometheus {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Prometheus {
    fn start(name: &str, relay: &Relay) -> Prometheus {
        let folder = std::env::temp_dir().join(format!("{name}-prometheus"));
        std::fs::create_dir_all(&folder).expect("folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let rules = compose("prometheus/rules/cdc-relay.yml").canonicalize().expect("rules");
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{
                "job_name": "cdc-relay",
                "static_configs": [{"targets": [relay.admin.to_string()], "labels": {"instance": "it"}}],
            }],
        });
        // JSON is YAML.
        std::fs::write(folder.join("prometheus.yml"), config.to_string()).expect("configuration");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .spawn()
            .expect("prometheus: `cargo stack up --servers` installs it");
        Prometheus { child, port, folder }
    }

    /// The answer of its API; `None` while it starts.
    fn get(&self, path: &str) -> Option<Value> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        // HTTP 1.0, so that the answer comes in one piece.
        write!(socket, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The number of series that answer a query; panics if the query is invalid.
    fn ask(&self, question: &str) -> usize {
        let encoded: String = question.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).expect("an answer");
        assert_eq!(answer["status"], "success", "{question}: {answer}");
        answer["data"]["result"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Title and query of every panel and variable of the dashboard, for all sources.
fn dashboard() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(compose("grafana/dashboards/cdc-relay.json")).expect("dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let ids: BTreeSet<i64> = panels.iter().filter_map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "panels with the same id");
    let variables = ["job", "instance", "source"];
    let mut questions = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("title");
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        for target in targets.unwrap_or_else(|| panic!("{title} asks nothing")) {
            let mut question = target["expr"].as_str().expect("expr").replace("$__rate_interval", "10s");
            for variable in variables {
                question = question.replace(&format!("${variable}"), ".*");
            }
            assert!(!question.contains('$'), "{title} has a variable that the dashboard has not: {question}");
            questions.push((title.to_owned(), question));
        }
    }
    for variable in board["templating"]["list"].as_array().expect("variables") {
        let query = variable["definition"].as_str().expect("definition");
        let series =
            query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", ")).expect(query).0;
        questions.push((query.to_owned(), series.replace("$job", ".*").replace("$instance", ".*")));
    }
    questions
}

/// The series of a rule, each as a query: a comparison that does not hold would hide a misspelt one.
fn selectors(rule: &str) -> BTreeSet<String> {
    let name_character = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = rule;
    while let Some(start) = rest.find(name_character) {
        rest = &rest[start..];
        let (name, after) = rest.split_at(rest.find(|c| !name_character(c)).unwrap_or(rest.len()));
        rest = after;
        let ours = ["cdc_relay_", "process_", "job_source"].iter().any(|prefix| name.starts_with(prefix));
        if ours || name == "up" {
            let labels = after.strip_prefix('{').and_then(|labels| labels.split_once('}'));
            found.insert(labels.map_or(name.to_owned(), |(labels, _)| format!("{name}{{{labels}}}")));
        }
    }
    found
}

#[test]
fn a_rule_is_taken_apart_into_its_series() {
    let rule =
        "max by (job) (delta(cdc_relay_a_total{state=\"x\"}[5m])) > 0 and up == 1 or job_source:a:b < 1";
    let wanted = ["cdc_relay_a_total{state=\"x\"}", "job_source:a:b", "up"].map(str::to_owned);
    assert_eq!(selectors(rule), BTreeSet::from(wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_of_dashboard_and_alerts_goes_unanswered() {
    let mut harness = Harness::new("observed").await;
    let relay = harness.streaming().await;
    let prometheus = Prometheus::start(&harness.name, &relay);
    // The load goes on during the queries: rates need two scrapes with events between them.
    let (mut rows, began) = (0, Instant::now());
    loop {
        for _ in 0..20 {
            rows += 1;
            harness.row("a", rows, 1, if rows % 2 == 0 { "work" } else { "made" }).await;
        }
        if prometheus.get("/api/v1/status/buildinfo").is_some() {
            let unanswered = unanswered_questions(&prometheus);
            if unanswered.is_empty() {
                break;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "no series: {unanswered:#?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    distinct(&harness.topic(), rows as usize).await;
    // No alert may fire for a relay without faults.
    assert_eq!(prometheus.ask("ALERTS{alertstate=\"firing\"}"), 0);
    relay.kill();
    eventually("an alert about a relay that does not answer", || async {
        (prometheus.ask("ALERTS{alertname=\"CdcRelayDown\"}") > 0).then_some(())
    })
    .await;
}

fn unanswered_questions(prometheus: &Prometheus) -> BTreeSet<String> {
    let mut unanswered: BTreeSet<String> = dashboard()
        .into_iter()
        .filter(|(_, question)| prometheus.ask(question) == 0)
        .map(|(title, question)| format!("{title}: {question}"))
        .collect();
    let rules = prometheus.get("/api/v1/rules").expect("rules");
    let groups = rules["data"]["groups"].as_array().expect("groups");
    let rules: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    assert!(rules.len() > 15, "the rules are not loaded: {rules:?}");
    for rule in rules {
        assert!(rule["health"] != "err", "{rule}");
        for question in selectors(rule["query"].as_str().expect("query")) {
            // No row waits long enough for every scrape to see it.
            if prometheus.ask(&question) == 0 && !question.starts_with("job_source:cdc_relay_oldest_pending")
            {
                unanswered.insert(format!("{}: {question}", rule["name"]));
            }
        }
    }
    unanswered
}

#[tokio::test]
async fn a_log_for_machines_is_json_and_says_which_source_and_where() {
    let mut harness = Harness::new("json").await;
    let relay = harness.start_with(&[], &[("LOG_FORMAT", "json")]);
    relay.streams().await;
    for id in 0..50 {
        harness.row("a", id, 1, "made").await;
    }
    harness.confirmed().await;
    // Too large for any topic: a dead letter.
    harness
        .sql
        .execute("insert into items (owner, id, version, note) values ('b', 1, 1, repeat('x', 3000000))", &[])
        .await
        .expect("a row");
    harness.confirmed().await;
    let log = relay.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let line = |message: &str| {
        lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message}: {log}"))
    };
    let begun = line("streaming");
    assert_eq!((&begun["source"], &begun["slot"]), (&"it".into(), &harness.name.as_str().into()));
    assert!(begun["acknowledged"].as_str().is_some_and(|position| position.contains('/')), "{begun}");
    let dead_letter = line("dead letter");
    assert_eq!((&dead_letter["table"], &dead_letter["key"]), (&"public.items".into(), &"b".into()));
    assert!(dead_letter["position"].as_str().is_some_and(|position| position.contains('/')), "{dead_letter}");
    // Fifty rows, and no line for any of them.
    assert!(lines.len() < 20, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_looked_at_is_seen() {
    let mut harness = Harness::new("watch").await;
    let relay = harness.streaming().await;
    // The first check may come before the slot is made.
    eventually("a check of the slot", || async {
        (relay.metric("cdc_relay_slot_status{source=\"it\",status=\"reserved\"}") == 1.0).then_some(())
    })
    .await;
    assert!(relay.metric("cdc_relay_slot_watched_timestamp_seconds") > 0.0);
    assert_eq!(relay.metric("cdc_relay_slot_watch_failures_total"), 0.0);
    assert!(relay.metric("cdc_relay_slot_invalidation_seconds") > 0.0);
    // The database refuses new connections; the session that streams goes on.
    let admin = crate::harness::connect(&crate::harness::server("POSTGRES_ADMIN_URL")).await;
    let close = format!("alter database {} allow_connections false", harness.name);
    admin.batch_execute(&close).await.expect("close");
    let watcher = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 \
                   and backend_type = 'client backend' and query like '%safe_wal_size%'";
    admin.query(watcher, &[&harness.name]).await.expect("kill");
    eventually("the failure to be counted", || async {
        (relay.metric("cdc_relay_slot_watch_failures_total") > 0.0).then_some(())
    })
    .await;
    assert!(relay.log().contains("the slot cannot be watched"), "{}", relay.log());
    let open = format!("alter database {} allow_connections true", harness.name);
    admin.batch_execute(&open).await.expect("open");
}
