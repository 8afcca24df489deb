//! The dashboards of Coro: generated from their source, and every query has data on the running stack.
//!
//! * Grafana itself is not here: nothing says how it shows them.
//! * The dashboard of the relay has a test of its own, in the relay's crate.
//! * Panels of traces have data where the stack has that part: the encrypted one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use crate::clients::printed;
use crate::harness::{Harness, binary, get};
use crate::pay_page;

const DASHBOARDS: [&str; 3] = ["coro-money", "coro-saga", "coro-servers"];
/// Rules are evaluated once a minute, and use what was scraped before.
const DATA_TIMEOUT: Duration = Duration::from_secs(240);

fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/grafana")
}

fn dashboard(name: &str) -> Value {
    let text = std::fs::read_to_string(grafana().join(format!("dashboards/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Title and query of every panel, with a range in which there was load.
fn queries(name: &str) -> Vec<(String, String)> {
    let board = dashboard(name);
    let panels = board["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "{name}: panels with the same id");
    let mut found = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{name}: {title} asks nothing");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            assert!(!query.contains("or vector"), "{name}: {title} hides that it has no data: {query}");
            let query = query.replace("$__rate_interval", "5m");
            assert!(
                !query.contains('$'),
                "{name}: {title} has a variable that the dashboard has not: {query}"
            );
            found.push((format!("{name}: {title}"), query));
        }
    }
    assert!(found.len() > 20, "{name}: {}", found.len());
    found
}

/// Whether a query has a value that is a number.
async fn has_data(harness: &Harness, query: &str) -> bool {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let url = format!("{}/api/v1/query?query={encoded}", harness.stack.prometheus_url);
    let answer: Value = get(url).await.unwrap().json().await.unwrap();
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    let series = answer["data"]["result"].as_array().unwrap();
    series.iter().any(|series| series["value"][1] != "NaN")
}

/// Pays until each query has a value.
async fn have_data(harness: &Harness, is_asked: impl Fn(&str) -> bool) {
    let user = Uuid::now_v7();
    harness.client.deposit(user, 1_000_000, "dashboards").await.unwrap();
    let mut left: Vec<(String, String)> = DASHBOARDS.iter().flat_map(|name| queries(name)).collect();
    left.retain(|(_, query)| is_asked(query));
    assert!(!left.is_empty());
    let began = Instant::now();
    while !left.is_empty() {
        assert!(began.elapsed() < DATA_TIMEOUT, "no data: {left:#?}");
        // Rates need payments between two scrapes; some are declined.
        for client_number in ["081234567890", "081234567890-decline"] {
            harness.settle(user, client_number, 10).await;
        }
        let mut without = Vec::new();
        for (title, query) in left {
            if !has_data(harness, &query).await {
                without.push((title, query));
            }
        }
        left = without;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn is_of_traces(query: &str) -> bool {
    query.contains("tracer_")
}

#[tokio::test]
async fn every_panel_has_data() {
    let harness = Harness::shared().await;
    have_data(&harness, |query| !is_of_traces(query)).await;
    // While there are data: pictures for the README, and for whoever has no Grafana.
    let boards = ["coro-money", "coro-servers"].map(|name| grafana().join(format!("dashboards/{name}.json")));
    let mut draw = pay_page::TOOLS.program("node").await;
    draw.arg("dashboards.mjs").env("DASHBOARDS", boards.map(|path| path.display().to_string()).join(" "));
    draw.env("PROMETHEUS_URL", &harness.stack.prometheus_url).env("CHROMIUM", pay_page::browser());
    draw.env("PICTURES", pay_page::TOOLS.folder().await.join("pictures"));
    printed(draw).await;
}

mod encrypted {
    use super::{Harness, have_data, is_of_traces};

    #[tokio::test]
    #[ignore = "needs the part `traces`: cargo stack test --all"]
    async fn every_panel_of_traces_has_data() {
        have_data(&Harness::shared().await, is_of_traces).await;
    }
}

#[tokio::test]
async fn the_dashboards_are_those_that_their_source_makes() {
    let made = binary("dashboards-made");
    let script = grafana().join("generate/generate.sh");
    let output = Command::new(&script).arg(binary("dashboards")).arg(&made).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in DASHBOARDS {
        let text = std::fs::read_to_string(made.join(format!("{name}.json"))).unwrap();
        let made: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(made, dashboard(name), "{name}: run {}", script.display());
    }
}
