//! Keycloak, an issuer of tokens that tests sign users in with, from Maven Central.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::layout::Layout;
use crate::maven::{Artifact, Content, Download, run};
use crate::output::Step;
use crate::servers::java::java;

/// What its server needs.
pub const JAVA: RangeInclusive<u32> = 17..=u32::MAX;
const VERSION: &str = "26.7.3";

/// Downloads it once for all stacks, prepared to run with its data in memory. Returns its folder.
///
/// # Errors
/// As [`Download::ensure`]; or when it cannot be prepared.
pub fn install(layout: &Layout) -> Result<PathBuf> {
    let artifact = Artifact {
        group: "org.keycloak",
        name: "keycloak-quarkus-dist",
        version: VERSION,
        kind: "zip",
        classifier: None,
    };
    let target = layout.cache.join(format!("keycloak-{VERSION}-in-memory"));
    let download = Download { content: Content::Archive(artifact), target: &target };
    let home = |folder: &Path| folder.join(format!("keycloak-{VERSION}"));
    let what = format!("Keycloak {VERSION} from Maven");
    download.ensure(layout, &Step::silent(), &what, |folder| {
        let java = java(&JAVA).context("Java 17 or newer is not installed")?;
        let mut build = Command::new("bash");
        // Its choice of a database is compiled in.
        build.arg(home(folder).join("bin/kc.sh")).args(["build", "--db=dev-mem"]);
        build.env("JAVA_HOME", java.parent().and_then(Path::parent).context("Java's folder")?);
        run(build).context("Keycloak cannot be prepared")
    })?;
    Ok(home(&target))
}
