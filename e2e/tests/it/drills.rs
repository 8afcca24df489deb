//! What drills rest on: scripts of runbooks, and alerts as Prometheus says. The drills themselves are played by
//! `cargo stack test --only drills`.

use e2e::drill::alerts::{AlertState, Prometheus};
use e2e::drill::script;

use crate::harness::Harness;

#[tokio::test]
async fn a_script_finds_our_programs_and_its_variables_and_ends_at_its_first_failure() {
    let _harness = Harness::shared().await;
    let script = "cargo stack status\ncoroctl parked list --json --source \"$SOURCE\"\n";
    let printed = script::run(script, &[("SOURCE", "no such topic")]).await.unwrap();
    assert!(printed.contains("cdc-relay") && printed.contains("\"parked\": []"), "{printed}");

    for (script, problem) in [
        ("echo before\nfalse\necho after", "before"),
        ("cargo stack restart nobody\necho after", "nobody"),
        ("echo \"$NOT_GIVEN\"\necho after", "NOT_GIVEN"),
    ] {
        let error = format!("{:#}", script::run(script, &[]).await.unwrap_err());
        assert!(error.contains(problem) && !error.contains("after"), "{script}: {error}");
    }
}

#[tokio::test]
async fn prometheus_says_which_alerts_fire() {
    let harness = Harness::shared().await;
    let prometheus = Prometheus::new(&harness.stack.prometheus_url).unwrap();
    // It always fires.
    assert_eq!(prometheus.state("CoroWatchdog").await.unwrap(), AlertState::Firing);
    assert_eq!(prometheus.state("NoSuchAlert").await.unwrap(), AlertState::Inactive);
}
