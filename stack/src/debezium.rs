//! Debezium's PostgreSQL connector, which `bench relay` measures the relay against, from Maven Central.

use std::path::PathBuf;

use anyhow::Result;

use crate::layout::Layout;
use crate::maven::Archive;
use crate::output::Step;

const VERSION: &str = "3.6.1.Final";

/// Where the connector of this version is, or will be: a folder of Kafka Connect plugins.
pub fn plugins(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("debezium-{VERSION}"))
}

/// Downloads it once for all stacks.
///
/// # Errors
/// As [`Archive::unpack`].
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let archive = Archive {
        title: format!("Debezium {VERSION}"),
        artifact: format!("io.debezium:debezium-connector-postgres:{VERSION}:tar.gz:plugin"),
        folder: plugins(layout),
    };
    archive.unpack(layout, step, |_| Ok(()))
}
