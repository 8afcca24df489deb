//! The loads for k6, without a k6: the compiler reads the script with k6's types, and each of its functions runs once.
//!
//! * k6's modules are a shim (`e2e/loads/shim.mjs`); the requests that the script makes are real.

use crate::clients::printed;
use crate::harness::Harness;
use crate::tools::Tools;

/// The script for k6, and what checks it.
static TOOLS: Tools = Tools::new("loads", &["compose/k6"]);

#[tokio::test]
async fn the_script_is_what_the_types_of_k6_allow() {
    let mut compiler = TOOLS.program("node").await;
    compiler.arg("node_modules/typescript/bin/tsc");
    printed(compiler).await;
}

#[tokio::test]
async fn each_function_of_the_script_does_its_work() {
    let harness = Harness::shared().await;
    let stack = &harness.stack;
    let mut run = TOOLS.program("node").await;
    run.arg("run.mjs").env("EDGE_URL", &stack.edge_url).env("BALANCE_ADMIN_URL", &stack.balance_admin_url);
    run.env("ADMIN_TOKEN", &stack.admin_token).env("DEMO_SERVICE_ID", &stack.demo_service_id);
    printed(run).await;
}
