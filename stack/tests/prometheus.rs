//! Tests the configuration of Prometheus and its rules with Prometheus' own tool.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/prometheus")
}

/// The files of rules: name without its extension, rules, and their tests.
fn rules() -> Vec<(String, String, String)> {
    let folder = folder().join("rules");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| name.to_str().unwrap().strip_suffix(".yml").map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| !name.ends_with("_test")).collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    let read = |name: String| std::fs::read_to_string(folder.join(name)).unwrap();
    let files = names.into_iter().map(|name| {
        let (rules, tests) = (read(format!("{name}.yml")), read(format!("{name}_test.yml")));
        (name, rules, tests)
    });
    files.collect()
}

/// Name and text of each alert.
fn alerts(rules: &str) -> Vec<(&str, &str)> {
    let alerts: Vec<(&str, &str)> = rules
        .split("- alert: ")
        .skip(1)
        .map(|alert| (alert.lines().next().unwrap(), alert.split("\n  - name: ").next().unwrap()))
        .collect();
    assert!(alerts.len() > 2, "the file is not read as it is written");
    alerts
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
    assert!(text.contains(&format!("{} rule files found", rules().len())), "{text}");
}

#[test]
fn each_alert_fires_for_its_trouble_and_for_no_other() {
    for (name, ..) in rules() {
        promtool(&folder().join("rules"), &["test", "rules", &format!("{name}_test.yml")]);
    }
}

#[test]
fn each_alert_has_a_severity_a_summary_and_its_section_of_a_runbook() {
    for (file, rules, _) in rules() {
        for (name, alert) in alerts(&rules) {
            let severity = alert.lines().find_map(|line| line.trim_start().strip_prefix("severity: "));
            assert!(matches!(severity, Some("page" | "ticket")), "{name}: {severity:?}");
            let url = format!("runbook_url: docs/runbooks/{file}.md#{}\n", name.to_lowercase());
            for part in ["summary: ", url.as_str()] {
                assert!(alert.contains(part), "{name} has no {part}");
            }
        }
    }
}

/// Each test of a file names what it is about, so its text says whether an alert fires in it, and whether it is quiet.
#[test]
fn each_alert_fires_in_a_test_and_is_quiet_in_one() {
    for (_, rules, tests) in rules() {
        for (name, _) in alerts(&rules) {
            let fires = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\", severity=");
            assert!(tests.contains(&fires), "nothing shows that {name} fires");
            // It always fires.
            if name == "CoroWatchdog" {
                continue;
            }
            let mut about = tests.split("  - name: ").filter(|test| test.contains(name));
            let quiet = about.any(|test| test.contains("exp_samples: []") || test.contains("=\"good\""));
            assert!(quiet, "nothing shows that {name} is ever quiet");
        }
    }
}

/// The metrics that the exporters of Postgres and Kafka collect, by their files.
fn collected() -> BTreeSet<String> {
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder().join("..").join(name)).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    };
    let (postgres, kafka) = (read("postgres/metrics.yml"), read("kafka/metrics.yml"));
    let columns = postgres.as_object().unwrap().iter().flat_map(|(key, asked)| {
        let columns = asked["metrics"].as_array().unwrap().iter().map(|column| column.as_object().unwrap());
        let columns =
            columns.flat_map(|column| column.iter().filter(|(_, column)| column["usage"] != "LABEL"));
        columns.map(move |(name, _)| format!("{key}_{name}"))
    });
    let names =
        kafka["rules"].as_array().unwrap().iter().map(|rule| rule["name"].as_str().unwrap().to_owned());
    columns.chain(names).collect()
}

/// A rule about what nobody collects never fires.
#[test]
fn what_the_rules_ask_of_postgres_and_kafka_is_collected() {
    let collected = collected();
    let mut asked = BTreeSet::new();
    for (_, rules, _) in rules() {
        let expressions = rules.split("expr: ").skip(1).map(|rest| rest.split("labels:").next().unwrap());
        let words = expressions.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        let of_exporters = words.filter(|word| word.starts_with("postgres_") || word.starts_with("kafka_"));
        asked.extend(of_exporters.map(str::to_owned));
    }
    assert!(asked.len() > 7, "{asked:?}");
    assert!(asked.is_subset(&collected), "{:?}", asked.difference(&collected));
}
