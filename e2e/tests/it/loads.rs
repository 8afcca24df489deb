//! The loads for k6, without a k6: the compiler reads the script with k6's types, and each of its functions runs once.
//!
//! * k6's modules are a shim (`e2e/loads/shim.mjs`); the requests that the script makes are real.
//! * A tool that is missing fails the test.

use std::path::PathBuf;

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::clients::printed;
use crate::harness::{Harness, binary};

/// The Node.js of the folder with the script and the tools, in that folder. They are installed at the first use.
async fn node() -> Command {
    static TOOLS: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async || {
        let folder = binary("loads");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/loads/install.sh");
        let status = Command::new(script).arg(&folder).status().await.unwrap();
        assert!(status.success(), "{script} failed; it needs npm");
        folder
    };
    let folder = TOOLS.get_or_init(install).await;
    let mut command = Command::new(folder.join("node"));
    command.current_dir(folder).kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_script_is_what_the_types_of_k6_allow() {
    let mut compiler = node().await;
    compiler.arg("node_modules/typescript/bin/tsc");
    printed(compiler).await;
}

#[tokio::test]
async fn each_function_of_the_script_does_its_work() {
    let harness = Harness::shared().await;
    let stack = &harness.stack;
    let mut run = node().await;
    run.arg("run.mjs").env("EDGE_URL", &stack.edge_url).env("BALANCE_ADMIN_URL", &stack.balance_admin_url);
    run.env("ADMIN_TOKEN", &stack.admin_token).env("DEMO_SERVICE_ID", &stack.demo_service_id);
    printed(run).await;
}
