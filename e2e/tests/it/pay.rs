//! The snippets of docs/PAY.md, each run as an app runs it.
//!
//! They are for `--all`, as those of subscribers are, and have the same tools.

use uuid::Uuid;

use crate::harness::Harness;
use crate::subscribe::tool;

/// Pays, follows, cancels too late or in time, and reads the statement.
async fn pays_follows_cancels_and_reads_the_statement(program: &str, snippet: &str) {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let run = async |client_number: &str, amount: &str| {
        let mut command = tool(program, snippet).await;
        command.args([client_number, amount]).env("EDGE_URL", &harness.stack.edge_url);
        let output = command.env("DEMO_USER_ID", user.to_string()).output().await.unwrap();
        let (printed, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{printed}{errors}");
        printed.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let paid = run("0812", "300").await;
    let id: Uuid = paid[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(
        paid[0].split_once(&id.to_string()).unwrap().1.split(' ').nth(1),
        Some("completed"),
        "{paid:?}"
    );
    let cancelled = paid[1].ends_with(" cancelled honoured");
    assert!(cancelled || paid[1].ends_with(" completed refused"), "{paid:?}");
    assert!(paid[2].contains(" capture 300 ") && paid[3].contains(" hold 300 "), "newest first: {paid:?}");
    let declined = run("0812-decline", "10").await;
    assert!(declined[0].contains(" failed declined:"), "{declined:?}");
    assert!(declined[2].contains(" release 10 "), "{declined:?}");
}

#[tokio::test]
#[ignore = "installs tools of other languages: cargo stack test --all"]
async fn the_snippet_in_python_pays() {
    pays_follows_cancels_and_reads_the_statement("python/bin/python3", "pay.py").await;
}

#[tokio::test]
#[ignore = "installs tools of other languages: cargo stack test --all"]
async fn the_snippet_in_typescript_pays() {
    pays_follows_cancels_and_reads_the_statement("node", "pay.ts").await;
}
