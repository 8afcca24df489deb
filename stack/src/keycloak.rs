//! Keycloak, an issuer of tokens that tests sign users in with, from Maven Central.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::layout::Layout;
use crate::maven::{Archive, run};
use crate::output::Step;
use crate::servers::kafka::java;

const VERSION: &str = "26.7.3";

/// Downloads it once for all stacks, prepared to run with its data in memory. Returns its folder.
///
/// # Errors
/// As [`Archive::unpack`]; or when it cannot be prepared.
pub fn install(layout: &Layout) -> Result<PathBuf> {
    let archive = Archive {
        title: format!("Keycloak {VERSION}"),
        artifact: format!("org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"),
        folder: layout.cache.join(format!("keycloak-{VERSION}-in-memory")),
    };
    let home = |folder: &Path| folder.join(format!("keycloak-{VERSION}"));
    archive.unpack(layout, &Step::silent(), |folder| {
        let java = java().context("Java 17 or newer is not installed")?;
        let mut build = Command::new("bash");
        // Its choice of a database is compiled in.
        build.arg(home(folder).join("bin/kc.sh")).args(["build", "--db=dev-mem"]);
        build.env("JAVA_HOME", java.parent().and_then(Path::parent).context("Java's folder")?);
        run(build).context("Keycloak cannot be prepared")
    })?;
    Ok(home(&archive.folder))
}
