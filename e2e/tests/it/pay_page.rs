//! The page to pay by hand, in a browser that reaches it through the edge.
//!
//! * A scenario is a script of `e2e/browser`; what it leaves behind is looked up here.
//! * axe finds nothing in any state that a scenario stops at, in light and in dark.
//! * The pictures that the scenarios take are in `browser/pictures` of the build folder; those of the README are chosen of them.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::Harness;
use crate::tools::Tools;

/// The programs of the browser, by distribution.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const SCENARIO_TIMEOUT: Duration = Duration::from_secs(300);

/// The scenarios, and what drives the browser.
pub static TOOLS: Tools = Tools::new("browser", &[]);

pub fn browser() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let programs = BROWSERS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    programs
        .into_iter()
        .find(|program| program.is_file())
        .expect("Chromium is missing: `cargo stack test` installs it")
}

/// Runs a scenario as a new user, who has 1,000,000. Returns the user.
async fn play(harness: &Harness, scenario: &str) -> Uuid {
    let user = harness.client.user_with(1_000_000).await.unwrap();
    let mut command = TOOLS.program("node").await;
    command.arg(format!("{scenario}.mjs"));
    command.env("USER_ID", user.to_string()).env("CHROMIUM", browser());
    command.env("EDGE_URL", &harness.stack.edge_url).env("PICTURES", TOOLS.folder().await.join("pictures"));
    let output = timeout(SCENARIO_TIMEOUT, command.output()).await.expect("the scenario ends").unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{scenario}: {printed}{errors}");
    user
}

#[tokio::test]
async fn a_person_pays_and_watches_the_payment_complete() {
    let harness = Harness::shared().await;
    let user = play(&harness, "pays").await;
    assert_eq!(harness.client.balance(user).await.unwrap(), (985_000, 0));
}

#[tokio::test]
async fn a_person_cancels() {
    let harness = Harness::alone().await;
    // Without the queue there is no work, so the cancel is certain to come first.
    harness.cargo_stack("stop", "rabbitmq").await;
    let user = play(&harness, "cancels").await;
    harness.cargo_stack("start", "rabbitmq").await;
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000_000, 0));
    // The work message comes after all; the next one is taken after it.
    assert_eq!(harness.settle(user, "0812", 100).await["status"], "completed");
    harness.adds_up().await;
}

#[tokio::test]
async fn a_person_is_not_asked_to_pay_again_while_the_outcome_is_unknown() {
    let harness = Harness::shared().await;
    let user = play(&harness, "unknown").await;
    assert_eq!(harness.client.balance(user).await.unwrap(), (985_000, 0));
    assert_eq!(harness.payments_of(user).await, 1);
}

#[tokio::test]
async fn whatever_fails_a_person_pays_once() {
    let harness = Harness::shared().await;
    let user = play(&harness, "trouble").await;
    // Three were completed, and one was rejected.
    assert_eq!(harness.payments_of(user).await, 4);
    assert_eq!(harness.client.balance(user).await.unwrap(), (997_000, 0));
}
