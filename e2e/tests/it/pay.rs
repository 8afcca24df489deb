//! docs/PAY.md: its commands and snippets run as an app runs them, its reasons are those of the code, and its test numbers do
//! what it says.

use std::collections::BTreeSet;
use std::fs;

use balance_svc::saga::Rejection;
use futures_util::future::join_all;
use processor_svc::cause::Cause;
use saga::contract::ReleaseCause;
use serde_json::Value;
use strum::VariantNames;
use tokio::process::Command;
use uuid::Uuid;

use crate::asyncapi::docs;
use crate::clients::{printed, tool};
use crate::harness::{Harness, binary};
use crate::openapi::OpenApi;

/// The code of an outcome that is unknown for a cause that nobody gave (`payments_svc::events`).
const NO_CAUSE: &str = "unknown";

fn page() -> String {
    fs::read_to_string(docs("PAY.md")).unwrap()
}

/// A section of the page, by the beginning of its heading.
fn section<'p>(page: &'p str, heading: &str) -> &'p str {
    let found = page.split("\n## ").find(|section| section.starts_with(heading));
    found.unwrap_or_else(|| panic!("PAY.md has no section {heading}"))
}

/// The rows of the tables of a section, as cells, without headings.
fn rows(section: &str) -> Vec<Vec<&str>> {
    let lines = section.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let rows = lines.map(|line| line.split('|').map(str::trim).collect::<Vec<&str>>());
    rows.filter(|cells| cells[0].starts_with('`')).collect()
}

/// The texts in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The blocks of the page that are commands of curl, in their order.
fn commands(page: &str) -> String {
    let indented =
        |block: &&str| block.lines().all(|line| line.starts_with("    ")) && block.contains("curl ");
    page.split("\n\n").filter(indented).collect::<Vec<&str>>().join("\n")
}

/// Pays, tries again, follows, cancels too late or in time, and reads the statement.
async fn pays_follows_cancels_and_reads_the_statement(program: &str, snippet: &str) {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let run = async |client_number: &str, amount: &str| {
        let mut command = tool(program).await;
        command.args([snippet, client_number, amount]).env("EDGE_URL", &harness.stack.edge_url);
        command.env("DEMO_USER_ID", user.to_string());
        printed(command).await.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let paid = run("0812", "300").await;
    let id: Uuid = paid[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert!(paid[0].starts_with(&format!("payment {id} completed ")), "{paid:?}");
    let cancelled = paid[1].ends_with(" cancelled honoured");
    assert!(cancelled || paid[1].ends_with(" completed refused"), "{paid:?}");
    assert!(paid[2].contains(" capture 300 ") && paid[3].contains(" hold 300 "), "newest first: {paid:?}");
    assert_eq!(paid.len(), 4, "tried again, and paid once: {paid:?}");
    let declined = run("0812-decline", "10").await;
    assert!(declined[0].contains(" failed declined:"), "{declined:?}");
    assert!(declined[2].contains(" release 10 "), "{declined:?}");
    let payments = if cancelled { 300 } else { 600 };
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000 - payments, 0));
}

#[tokio::test]
async fn the_snippet_in_python_pays() {
    pays_follows_cancels_and_reads_the_statement("python/bin/python3", "pay.py").await;
}

#[tokio::test]
async fn the_snippet_in_typescript_pays() {
    let mut types = tool("node").await;
    types.args(["node_modules/.bin/tsc", "--project", "tsconfig.json"]);
    printed(types).await;
    pays_follows_cancels_and_reads_the_statement("node", "pay.ts").await;
}

#[tokio::test]
async fn the_commands_of_the_page_pay() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(100_000).await.unwrap();
    let mut command = Command::new("sh");
    // The page fetches openapi.yaml.
    let folder = binary("page");
    fs::create_dir_all(&folder).unwrap();
    command.current_dir(folder).args(["-euc", &commands(&page())]);
    command.env("EDGE_URL", &harness.stack.edge_url).env("DEMO_USER_ID", user.to_string());
    let printed = printed(command).await;
    for expected in [
        "HTTP/1.1 201 ",
        r#"{"payments":[{"payment_id":""#,
        r#""status":"completed""#,
        "event:payment\n",
        "urn:coro:problem:payment-ended",
        r#""kind":"capture""#,
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    assert_eq!(harness.payments_of(user).await, 1, "the page tries again with the same key");
}

/// Code, page and openapi.yaml have one list.
#[test]
fn every_reason_is_documented_and_no_other() {
    let (page, openapi) = (page(), OpenApi::read());
    let rows = rows(section(&page, "Reasons"));
    let (ends, causes): (Vec<_>, Vec<_>) = rows.iter().partition(|cells| cells.len() == 4);
    let [ends_of_openapi, causes_of_openapi] = openapi.reasons();
    let documented: BTreeSet<&str> = ends.iter().flat_map(|cells| quoted(cells[0])).collect();
    let of_code: BTreeSet<&str> = Rejection::VARIANTS.iter().chain(ReleaseCause::VARIANTS).copied().collect();
    assert_eq!((&documented, &ends_of_openapi), (&of_code, &of_code), "how payments end");
    for cells in ends {
        assert!(cells[3].starts_with("yes") || cells[3].starts_with("no"), "{cells:?}: whether to pay again");
    }
    let documented: BTreeSet<&str> = causes.iter().flat_map(|cells| quoted(cells[0])).collect();
    let name = |name: &'static str| match name {
        "http" => "http_",
        "void" => "void_",
        name => name,
    };
    let of_code: BTreeSet<&str> = Cause::VARIANTS.iter().copied().map(name).chain([NO_CAUSE]).collect();
    assert_eq!((&documented, &causes_of_openapi), (&of_code, &of_code), "why an outcome is unknown");
}

/// A number of the table is followed by what becomes of its payment, in backquotes.
#[tokio::test]
async fn test_numbers_do_what_the_page_says() {
    let harness = Harness::shared().await;
    let page = page();
    let rows = rows(section(&page, "Test numbers"));
    let run = async |cells: &Vec<&str>| {
        let user = harness.client.user_with(1_000).await.unwrap();
        let number = quoted(cells[0]).next().unwrap();
        let payment = harness.settle(user, number, 100).await;
        let words: Vec<&str> = quoted(cells[1]).collect();
        let status = words.iter().copied().find(|word| ["completed", "failed"].contains(word));
        assert_eq!(payment["status"], status.unwrap_or("completed"), "{number}: {payment}");
        let reason = words.iter().find(|word| word.contains(':')).map_or(Value::Null, |word| (*word).into());
        assert_eq!(payment["reason"], reason, "{number}: {payment}");
        // authorized, and once more with the unknown outcome.
        let versions = if words.contains(&"outcome_unknown") { 4 } else { 3 };
        assert_eq!(payment["version"], versions, "{number}: {payment}");
    };
    assert!(rows.len() >= 5, "{rows:?}");
    join_all(rows.iter().map(run)).await;
}
