//! Tests the example of Alertmanager's configuration: by its own tool, and by a real Alertmanager that is sent alerts.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const INSTALLED: &str = "`cargo stack test` installs prometheus-alertmanager";

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/alertmanager/alertmanager.yml")
}

fn amtool(arguments: &[&str]) -> String {
    let config = config();
    let output = Command::new("amtool").args(arguments).current_dir(config.parent().unwrap()).output();
    let output = output.expect(INSTALLED);
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "amtool {arguments:?}:\n{text}");
    text
}

#[test]
fn the_example_is_valid_and_finds_its_templates() {
    let text = amtool(&["check-config", "alertmanager.yml"]);
    assert!(text.contains("3 receivers") && text.contains("1 templates"), "{text}");
    let title = amtool(&[
        "template",
        "render",
        "--template.glob=runbook.tmpl",
        "--template.text={{ template \"coro.runbooks\" . }}",
    ]);
    assert!(title.contains("https://git.example/coro/blob/main/"), "{title}");
}

#[test]
fn each_severity_and_the_watchdog_go_their_way() {
    for (labels, receiver) in [
        ("alertname=CoroBreakerOpen severity=page", "on-duty"),
        ("alertname=CoroParked severity=ticket", "working-hours"),
        ("alertname=CoroWatchdog severity=ticket", "dead-man"),
        ("alertname=SomethingElse", "working-hours"),
    ] {
        let mut arguments = vec!["config", "routes", "test", "--config.file=alertmanager.yml"];
        let verify = format!("--verify.receivers={receiver}");
        arguments.push(&verify);
        arguments.extend(labels.split(' '));
        amtool(&arguments);
    }
}

#[test]
fn every_alert_that_is_named_exists() {
    let (example, folder) = (std::fs::read_to_string(config()).unwrap(), config());
    let rules = folder.parent().unwrap().join("../prometheus/rules");
    let alerts: Vec<String> = std::fs::read_dir(rules)
        .unwrap()
        .flat_map(|entry| {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let names = text.split("- alert: ").skip(1).map(|alert| alert.lines().next().unwrap().to_owned());
            names.collect::<Vec<String>>()
        })
        .collect();
    let patterns = example.lines().filter(|line| line.contains("alertname =~")).count();
    assert!(patterns > 10, "{patterns}");
    for line in example.lines().filter(|line| line.contains("alertname =")) {
        for name in names(line) {
            let exists = alerts.iter().any(|alert| alert.starts_with(&name));
            assert!(exists, "no alert is called {name}: {line}");
        }
    }
}

/// The names, or beginnings of names, that a matcher of alert names lists.
fn names(line: &str) -> Vec<String> {
    let pattern = line.split("alertname =").nth(1).unwrap();
    let pattern = pattern.trim_start_matches(['~', ' ', '"']).trim_end_matches(['"', '\'', ']', ' ']);
    alternatives(pattern).into_iter().flat_map(expanded).collect()
}

/// `A(B|C.*)` is AB and AC.
fn expanded(pattern: &str) -> Vec<String> {
    let Some(start) = pattern.find('(') else {
        return vec![pattern.trim_end_matches(['.', '*', '?']).to_owned()];
    };
    let mut depth = 0;
    let closes = |(_, character): &(usize, char)| {
        depth += i32::from(*character == '(') - i32::from(*character == ')');
        depth == 0
    };
    let end = start + pattern[start..].char_indices().find(closes).unwrap().0;
    let (before, inner, after) = (&pattern[..start], &pattern[start + 1..end], &pattern[end + 1..]);
    alternatives(inner).iter().flat_map(|choice| expanded(&format!("{before}{choice}{after}"))).collect()
}

/// The parts between the bars that stand in no parenthesis.
fn alternatives(pattern: &str) -> Vec<&str> {
    let mut depth = 0;
    let separates = |character: char| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == '|' && depth == 0
    };
    pattern.split(separates).collect()
}

#[test]
fn a_matcher_is_taken_apart_into_names() {
    let line = r#"  - 'alertname =~ "Coro(A|(B|C)Burn.*)|CdcRelayD"'"#;
    assert_eq!(names(line), ["CoroA", "CoroBBurn", "CoroCBurn", "CdcRelayD"]);
    assert_eq!(names("    - source_matchers: [alertname = CoroX]"), ["CoroX"]);
}

/// An Alertmanager with the example's configuration, which ends when dropped. Its receivers are away.
struct Alertmanager {
    child: Child,
    url: String,
    folder: PathBuf,
}

impl Alertmanager {
    fn start(name: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
        let folder = std::env::temp_dir().join(format!("stack-alertmanager-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config().display()))
            .arg(format!("--storage.path={}", folder.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect(INSTALLED);
        let alertmanager = Self { child, url: format!("http://127.0.0.1:{port}/api/v2/alerts"), folder };
        alertmanager.until(|_| true);
        alertmanager
    }

    fn send(&self, alerts: &[&[(&str, &str)]]) {
        let labels =
            |alert: &&[(&str, &str)]| json!({"labels": alert.iter().copied().collect::<BTreeMap<_, _>>()});
        let body: Vec<Value> = alerts.iter().map(labels).collect();
        ureq::post(&self.url).send_json(&body).unwrap();
    }

    /// Name and source, or job, of each alert, and whether it is inhibited, once it is as it should be.
    fn until(&self, met: impl Fn(&BTreeMap<String, bool>) -> bool) -> BTreeMap<String, bool> {
        let began = Instant::now();
        loop {
            let alerts = ureq::get(&self.url).call().ok();
            let alerts = alerts.and_then(|mut answer| answer.body_mut().read_json::<Vec<Value>>().ok());
            let found = alerts.map(|alerts| alerts.iter().map(inhibited).collect::<BTreeMap<String, bool>>());
            if let Some(found) = found.as_ref().filter(|found| met(found)) {
                return found.clone();
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{found:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn inhibited(alert: &Value) -> (String, bool) {
    let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default();
    let name = format!("{} {}{}", label("alertname"), label("source"), label("slo"));
    let by = alert["status"]["inhibitedBy"].as_array().is_some_and(|by| !by.is_empty());
    (name.trim_end().to_owned(), by)
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_database_that_is_down_is_one_page_and_other_troubles_stay() {
    let alertmanager = Alertmanager::start("database");
    alertmanager.send(&[
        &[("alertname", "CoroWatchdog"), ("severity", "ticket")],
        &[("alertname", "CoroDatabaseDown"), ("severity", "page"), ("source", "payments")],
        &[("alertname", "CdcRelayStandstill"), ("severity", "page"), ("source", "payments")],
        &[("alertname", "CdcRelayStandstill"), ("severity", "page"), ("source", "balance")],
        &[("alertname", "CdcRelayHaltedKeys"), ("severity", "ticket"), ("source", "payments")],
        &[("alertname", "CoroAcceptErrors"), ("severity", "page"), ("job", "payments-svc")],
        &[("alertname", "CoroSettleBurnFast"), ("severity", "page"), ("slo", "settled")],
        &[("alertname", "CoroSettleBurn"), ("severity", "page"), ("slo", "settled")],
        &[("alertname", "CoroContradiction"), ("severity", "page"), ("job", "balance-svc")],
    ]);
    let wanted = [
        ("CdcRelayHaltedKeys payments", false),
        ("CdcRelayStandstill balance", false),
        ("CdcRelayStandstill payments", true),
        ("CoroAcceptErrors", true),
        ("CoroContradiction", false),
        ("CoroDatabaseDown payments", false),
        ("CoroSettleBurn settled", true),
        ("CoroSettleBurnFast settled", true),
        ("CoroWatchdog", false),
    ];
    let wanted: BTreeMap<String, bool> = wanted.map(|(name, by)| (name.to_owned(), by)).into();
    alertmanager.until(|found| *found == wanted);
}

#[test]
fn of_an_objective_the_fastest_burn_is_the_page() {
    let alertmanager = Alertmanager::start("burn");
    alertmanager.send(&[
        &[("alertname", "CoroAcceptBurnFast"), ("severity", "page"), ("slo", "accepted")],
        &[("alertname", "CoroAcceptBurnSlow"), ("severity", "ticket"), ("slo", "accepted")],
        &[("alertname", "CoroSettleBurnSlow"), ("severity", "ticket"), ("slo", "settled")],
    ]);
    let wanted = [
        ("CoroAcceptBurnFast accepted", false),
        ("CoroAcceptBurnSlow accepted", true),
        ("CoroSettleBurnSlow settled", false),
    ];
    let wanted: BTreeMap<String, bool> = wanted.map(|(name, by)| (name.to_owned(), by)).into();
    alertmanager.until(|found| *found == wanted);
}
