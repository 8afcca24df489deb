//! The tools of those who develop apps, as `e2e/clients` pins them.
//!
//! * They are installed into the build folder at the first use. A tool that is missing fails the test.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::harness::binary;

/// The folder with the snippets of docs/pay, the types made of docs/openapi.yaml, and their tools.
pub async fn folder() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async || {
        let folder = binary("clients");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/install.sh");
        let output = Command::new(script).arg(&folder).output().await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} needs npm, and Python 3.11 with venv: {errors}");
        folder
    };
    FOLDER.get_or_init(install).await
}

/// A program of the tools, run beside the snippets.
pub async fn tool(program: &str) -> Command {
    let folder = folder().await;
    let mut command = Command::new(folder.join(program));
    command.current_dir(folder).kill_on_drop(true);
    command
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
