//! The tools of those who develop apps, as `e2e/clients` pins them.

use std::path::Path;

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::tools::Tools;

/// The snippets of docs/pay, docs/openapi.yaml, and their tools.
static TOOLS: Tools = Tools::new("clients", &["docs/pay", "docs/openapi.yaml"]);

/// The folder with the tools, and with the types that they make of the document.
pub async fn folder() -> &'static Path {
    static TYPES: OnceCell<()> = OnceCell::const_new();
    let make = async || {
        printed(TOOLS.program("types.sh").await).await;
    };
    TYPES.get_or_init(make).await;
    TOOLS.folder().await
}

/// A program of the tools, run beside the snippets.
pub async fn tool(program: &str) -> Command {
    let _with_types = folder().await;
    TOOLS.program(program).await
}

/// What a program prints.
///
/// # Panics
/// When it fails.
pub async fn printed(mut command: Command) -> String {
    let output = command.output().await.unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {printed}{errors}");
    printed.into_owned()
}
