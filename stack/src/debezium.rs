//! Debezium's PostgreSQL connector, which `bench relay` measures the relay against, from Maven Central.

use std::path::PathBuf;

use anyhow::Result;

use crate::layout::Layout;
use crate::maven::{Artifact, Content, Download};
use crate::output::Step;

const VERSION: &str = "3.6.1.Final";

/// Where the connector of this version is, or will be: a folder of Kafka Connect plugins.
pub fn plugins(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("debezium-{VERSION}"))
}

/// Downloads it once for all stacks.
///
/// # Errors
/// As [`Download::ensure`].
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let artifact = Artifact {
        group: "io.debezium",
        name: "debezium-connector-postgres",
        version: VERSION,
        kind: "tar.gz",
        classifier: Some("plugin"),
    };
    let target = plugins(layout);
    let download = Download { content: Content::Archive(artifact), target: &target };
    download.ensure(layout, step, &format!("Debezium {VERSION} from Maven"), |_| Ok(()))?;
    Ok(format!("{VERSION} in {}", target.display()))
}
