//! Holds the running system and `docs/openapi.yaml` against each other by the tools of API developers: redocly lints the
//! document, schemathesis attacks the edge with it.
//!
//! * All checks and all phases of schemathesis, every operation, a fixed seed: `e2e/clients/schemathesis.toml`.
//! * Each status that the document names is observed by schemathesis, or has a test that is listed here.
//! * A document that says something else than the system does is found out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::clients::{folder, printed, tool};
use crate::harness::Harness;
use crate::openapi::OpenApi;

const SEED: &str = "15";
/// Money for any sum that schemathesis thinks of.
const DEPOSIT: i64 = 9_007_199_254_740_991;

const RULES: &str = "e2e/tests/it/http_rules.rs";
const EDGE: &str = "stack/tests/edge.rs";
const IDENTITY: &str = "saga/tests/it/identity.rs";

/// Statuses that schemathesis need not see: the operation (`*`: what the edge, or the code in front of all routes, answers
/// alike to each), the status, and the test that makes it.
const STATUS_TESTS: [(&str, &str, &str, &str); 19] = [
    ("*", "400", RULES, "the_edge_refuses_in_problem_documents"),
    ("*", "401", IDENTITY, "who_has_no_token_or_no_scope_learns_what_to_bring"),
    ("*", "403", IDENTITY, "who_has_no_token_or_no_scope_learns_what_to_bring"),
    ("*", "408", RULES, "the_edge_refuses_in_problem_documents"),
    ("*", "414", RULES, "a_path_has_one_spelling_at_edge_and_service"),
    ("*", "429", EDGE, "one_address_has_so_many_requests_and_the_others_theirs"),
    ("*", "503", EDGE, "where_no_service_is_the_edge_says_503"),
    ("*", "5XX", EDGE, "where_a_service_breaks_off_the_edge_says_502"),
    (
        "GET /payments/search",
        "503",
        "e2e/tests/it/search/faults.rs",
        "without_the_index_only_searches_fail_and_it_catches_up_by_itself",
    ),
    ("POST /payments", "413", RULES, "the_edge_refuses_in_problem_documents"),
    ("POST /payments", "415", RULES, "media_types_are_compared_as_rfc_9110_says"),
    (
        "GET /payments/{payment_id}/events",
        "204",
        "e2e/tests/it/following.rs",
        "a_stream_shows_each_state_once_and_ends_with_the_payment",
    ),
    (
        "POST /payments/{payment_id}/cancel",
        "409",
        "e2e/tests/it/cancel.rs",
        "what_has_ended_or_is_not_ours_cannot_be_cancelled",
    ),
    ("POST /payments", "422", "e2e/tests/it/idempotency.rs", "another_body_under_the_same_key_is_refused"),
    ("GET /payments/{payment_id}", "404", "e2e/tests/it/openapi.rs", "answers_are_as_described"),
    ("GET /payments/{payment_id}/events", "404", "e2e/tests/it/following.rs", "a_stream_is_its_users_alone"),
    (
        "POST /payments/{payment_id}/cancel",
        "404",
        "e2e/tests/it/cancel.rs",
        "what_has_ended_or_is_not_ours_cannot_be_cancelled",
    ),
    (
        "POST /payments/{payment_id}/cancel",
        "202",
        "e2e/tests/it/cancel.rs",
        "a_payment_cancelled_before_its_hold_is_never_charged",
    ),
    (
        "GET /balance",
        "404",
        "e2e/tests/it/openapi.rs",
        "who_has_no_account_has_an_empty_statement_and_no_balance",
    ),
];

/// One run of schemathesis, in a folder of its own.
struct Attack {
    folder: PathBuf,
    command: Command,
}

impl Attack {
    /// By the document at `location`, against the edge.
    async fn new(harness: &Harness, location: &str) -> Self {
        let tools = folder().await;
        let folder = tools.join("runs").join(Uuid::now_v7().to_string());
        fs::create_dir_all(&folder).unwrap();
        for file in ["schemathesis.toml", "hooks.py"] {
            fs::copy(tools.join(file), folder.join(file)).unwrap();
        }
        let users = [("payer", DEPOSIT), ("peer", 1)].map(async |(name, money)| {
            let user = harness.client.user_with(money).await.unwrap().to_string();
            json!({ "name": name, "fixedHeaders": [{ "name": "X-User-ID", "value": user }] })
        });
        let users = json!({ "auth": futures_util::future::join_all(users).await });
        fs::write(folder.join("users.json"), users.to_string()).unwrap();
        let mut command = tool("python/bin/schemathesis").await;
        command.current_dir(&folder).args(["--no-color", "run", location, "--url", &harness.stack.edge_url]);
        command.args(["--checks", "all", "--seed", SEED]);
        command
            .env("DEMO_SERVICE_ID", &harness.stack.demo_service_id)
            .env("OBSERVED", folder.join("observed.json"));
        Self { folder, command }
    }

    /// The operations and statuses that it saw.
    fn observed(&self) -> BTreeSet<(String, String)> {
        let text = fs::read_to_string(self.folder.join("observed.json")).unwrap();
        let counts: Vec<(String, u16, u64)> = serde_json::from_str(&text).unwrap();
        counts.into_iter().map(|(operation, status, _)| (operation, status.to_string())).collect()
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.folder);
    }
}

async fn finds_nothing_within(time: Duration) {
    let harness = Harness::shared().await;
    // Of a document that it fetches, schemathesis leaves out the operation by which it did.
    let document = folder().await.join("openapi.yaml");
    let mut attack = Attack::new(&harness, document.to_str().unwrap()).await;
    let phases = "examples,coverage,fuzzing,stateful";
    attack.command.args(["--phases", phases, "--max-time", &time.as_secs().to_string()]);
    let output = attack.command.output().await.unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{errors}");
    expect_every_status(&attack.observed(), &printed);
}

/// Of the documented statuses none is only written down.
fn expect_every_status(observed: &BTreeSet<(String, String)>, printed: &str) {
    let documented = OpenApi::read().statuses();
    let has_test = |(operation, status): &(String, String)| {
        STATUS_TESTS.iter().any(|test| ["*", operation].contains(&test.0) && test.1 == status)
    };
    let only_documented: Vec<_> =
        documented.iter().filter(|pair| !observed.contains(*pair) && !has_test(pair)).collect();
    assert!(only_documented.is_empty(), "neither observed nor tested: {only_documented:?}\n{printed}");
}

#[tokio::test]
async fn schemathesis_finds_nothing() {
    finds_nothing_within(Duration::from_secs(120)).await;
}

#[tokio::test]
#[ignore = "takes ten minutes: cargo stack test --all"]
async fn schemathesis_finds_nothing_in_ten_minutes() {
    finds_nothing_within(Duration::from_secs(600)).await;
}

#[test]
fn the_tests_that_are_said_to_make_a_status_are_there() {
    let documented = OpenApi::read().statuses();
    for (operation, status, file, test) in STATUS_TESTS {
        let text = fs::read_to_string(format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
        let is_it = |pair: &(String, String)| ["*", &pair.0].contains(&operation) && pair.1 == status;
        assert!(documented.iter().any(is_it), "{operation} answers no {status}");
    }
}

/// A document that says something else than the system does, and the words by which schemathesis finds that out.
struct Deviation {
    operation_id: &'static str,
    alter: fn(&mut Value),
    finding: &'static str,
}

const DEVIATIONS: [Deviation; 4] = [
    Deviation {
        operation_id: "getBalance",
        alter: |document| push(&mut document["components"]["schemas"]["Balance"]["required"], "currency"),
        finding: "Response violates schema",
    },
    Deviation {
        operation_id: "getPayment",
        alter: |document| {
            remove(&mut document["paths"]["/payments/{payment_id}"]["get"]["responses"], "404");
        },
        finding: "Undocumented status code",
    },
    Deviation {
        operation_id: "listMovements",
        alter: |document| {
            document["components"]["parameters"]["Limit"]["schema"]["maximum"] = json!(1_000);
        },
        finding: "Schema-valid request rejected",
    },
    Deviation {
        operation_id: "listPayments",
        alter: |document| {
            document["components"]["parameters"]["Limit"]["schema"]["minimum"] = json!(2);
        },
        finding: "Schema-violating request accepted",
    },
];

fn push(list: &mut Value, value: &str) {
    list.as_array_mut().unwrap().push(value.into());
}

fn remove(object: &mut Value, name: &str) {
    object.as_object_mut().unwrap().remove(name).unwrap();
}

#[tokio::test]
async fn planted_deviations_are_found() {
    let harness = Harness::shared().await;
    for Deviation { operation_id, alter, finding } in DEVIATIONS {
        let mut document = OpenApi::read().0;
        alter(&mut document);
        let mut attack = Attack::new(&harness, "openapi.json").await;
        fs::write(attack.folder.join("openapi.json"), document.to_string()).unwrap();
        attack.command.args(["--phases", "coverage,fuzzing", "--max-examples", "20"]);
        attack.command.args(["--include-operation-id", operation_id]);
        let output = attack.command.output().await.unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{operation_id}: {printed}");
        assert!(printed.contains(finding), "{operation_id}: {finding}: {printed}");
    }
}

#[tokio::test]
async fn redocly_has_nothing_to_say() {
    let mut lint = tool("node").await;
    lint.args(["node_modules/.bin/redocly", "lint", "openapi.yaml", "--config", "redocly.yaml"]);
    lint.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true");
    printed(lint).await;
}
