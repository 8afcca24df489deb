//! Zipkin, which keeps traces in memory and shows them on its page. From Maven Central.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::java::java;
use super::{kafka, text};
use crate::layout::{Layout, Port};
use crate::maven::{Artifact, Content, Download};
use crate::output::Step;
use crate::spec::Spec;

pub const VERSION: &str = "3.5.1";
/// Enough for what is kept: a completed payment has 13 spans.
pub const HEAP: &str = "192m";
pub const SPANS_MAX: u32 = 100_000;

fn folder(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("zipkin-{VERSION}"))
}

pub fn downloaded(layout: &Layout) -> bool {
    folder(layout).is_dir()
}

/// Downloads it once for all stacks.
///
/// # Errors
/// As [`Download::ensure`].
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let target = folder(layout);
    let server = Artifact {
        group: "io.zipkin",
        name: "zipkin-server",
        version: VERSION,
        kind: "jar",
        classifier: Some("exec"),
    };
    let download = Download { content: Content::File(server), target: &target };
    download.ensure(layout, step, &format!("Zipkin {VERSION} from Maven"), |_| Ok(()))?;
    Ok(format!("{VERSION} in {}", target.display()))
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let java = java(&kafka::JAVA).context("Zipkin needs Java 17 or newer, and none is installed")?;
    let home = layout.server_dir("zipkin")?;
    let mut argv = vec![text(&java), format!("-Xmx{HEAP}"), "-XX:+UseSerialGC".into()];
    argv.extend(["-XX:TieredStopAtLevel=1".into(), "-XX:+ExitOnOutOfMemoryError".into()]);
    argv.push(format!("-Djava.io.tmpdir={}", home.display()));
    argv.extend(["-jar".into(), text(&folder(layout).join(format!("zipkin-server-{VERSION}-exec.jar")))]);
    // It would listen on every address.
    argv.push("--server.address=127.0.0.1".into());
    argv.push(format!("--server.port={}", layout.port(Port::Zipkin)));
    argv.push(format!("--zipkin.storage.mem.max-spans={SPANS_MAX}"));
    Ok(vec![super::spec(layout, "zipkin", home, argv, Port::Zipkin)])
}
