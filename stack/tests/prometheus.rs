//! Tests the configuration of Prometheus and its rules with Prometheus' own tool.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/prometheus")
}

/// `promtool` is installed with Prometheus, by `cargo stack up`.
fn promtool(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output();
    let output = output.expect("promtool: `cargo stack up --servers` installs it");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
    text
}

#[test]
fn the_configuration_finds_its_rules() {
    // The targets are missing here, which is a warning: `cargo stack` writes them beside it.
    let text = promtool(&folder(), &["check", "config", "prometheus.yml"]);
    assert!(text.contains("3 rule files found"), "{text}");
}

#[test]
fn each_alert_fires_for_its_trouble_and_for_no_other() {
    for tests in ["cdc-relay_test.yml", "saga_test.yml", "notifier_test.yml"] {
        promtool(&folder().join("rules"), &["test", "rules", tests]);
    }
}

#[test]
fn each_alert_is_tested_and_says_what_to_do() {
    let read = |name: &str| std::fs::read_to_string(folder().join("rules").join(name)).unwrap();
    for (rules, tests, least) in [
        ("cdc-relay.yml", "cdc-relay_test.yml", 10),
        ("saga.yml", "saga_test.yml", 1),
        ("notifier.yml", "notifier_test.yml", 2),
    ] {
        let (rules, tests) = (read(rules), read(tests));
        let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
        assert!(alerts.len() > least, "the file is not read as it is written");
        for alert in alerts {
            let name = alert.lines().next().unwrap();
            for part in ["severity: ", "summary: ", "description: ", "what_to_do: "] {
                assert!(alert.contains(part), "{name} has no {part}");
            }
            let query = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\", severity=");
            assert!(tests.contains(&query), "nothing shows that {name} fires");
        }
    }
}
