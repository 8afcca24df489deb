//! Tools in other languages, as the folders of `e2e` pin them.
//!
//! * They are installed into the build folder at the first use. A tool that is missing fails the test.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::harness::binary;

/// The tools of one folder of `e2e`.
pub struct Tools {
    name: &'static str,
    beside: &'static [&'static str],
    folder: OnceCell<PathBuf>,
}

impl Tools {
    /// The tools of `e2e/name`. `beside` names files and folders of the workspace whose files lie beside them.
    pub const fn new(name: &'static str, beside: &'static [&'static str]) -> Self {
        Self { name, beside, folder: OnceCell::const_new() }
    }

    /// The folder with the tools.
    pub async fn folder(&self) -> &Path {
        let install = async || {
            let (root, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), binary(self.name));
            let script = root.join("e2e/install.sh");
            let mut command = Command::new(&script);
            command.arg(self.name).arg(&folder).args(self.beside.iter().map(|path| root.join(path)));
            let output = command.output().await.unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} {}: {errors}", script.display(), self.name);
            folder
        };
        self.folder.get_or_init(install).await
    }

    /// A program of the tools, run in their folder.
    pub async fn program(&self, program: &str) -> Command {
        let folder = self.folder().await;
        let mut command = Command::new(folder.join(program));
        command.current_dir(folder).kill_on_drop(true);
        command
    }
}
