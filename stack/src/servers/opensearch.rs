//! OpenSearch (one node) from Maven Central: the server and its bundled modules, without a Java of its own.
//!
//! * It has no logins: whoever reaches its port may read and change everything. So it listens on the loopback only.
//! * It makes no index by itself: a document of an index that nobody made is an error, not an index without a mapping.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::java::java;
use super::maven::{Artifact, Download, Goal};
use super::text;
use crate::layout::{Layout, Port};
use crate::output::Step;
use crate::spec::Spec;

const VERSION: &str = "2.19.4";
/// Newer ones have no security manager, which 2.x installs at its start.
pub const JAVA: RangeInclusive<u32> = 17..=23;
/// Enough for millions of payments: what is searched stays in the page cache.
const HEAP: &str = "256m";
/// Modules that a search over payments does not need. Without them it starts sooner, and takes 80 MB less of the disk.
const UNUSED_MODULES: [&str; 11] = [
    "ingest-geoip",
    "ingest-user-agent",
    "transport-grpc",
    "opensearch-dashboards",
    "percolator",
    "rank-eval",
    "repository-url",
    "rule-framework",
    "cache-common",
    "store-subdirectory",
    "search-pipeline-common",
];

/// The folder of this version, shared by all stacks.
fn folder(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("opensearch-{VERSION}"))
}

/// The server's own folder inside of it.
fn home(folder: &Path) -> PathBuf {
    folder.join(format!("opensearch-{VERSION}"))
}

pub fn downloaded(layout: &Layout) -> bool {
    folder(layout).is_dir()
}

/// Downloads it once for all stacks.
///
/// # Errors
/// As [`Download::ensure`], or when the archive is not what it was.
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let distribution = Artifact {
        group: "org.opensearch.distribution.integ-test-zip",
        name: "opensearch",
        version: VERSION,
        kind: "zip",
    };
    let target = folder(layout);
    let download = Download {
        name: "opensearch",
        artifacts: &[distribution],
        goal: Goal::Unpack,
        target: target.clone(),
    };
    let what = format!("OpenSearch {VERSION} from Maven: up to a minute");
    download.ensure(layout, step, &what, |content| {
        let home = home(content);
        ensure!(home.join("lib").is_dir(), "the archive has no folder {}/lib", home.display());
        for module in UNUSED_MODULES {
            let folder = home.join("modules").join(module);
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
        }
        fs::create_dir_all(home.join("plugins"))?;
        Ok(())
    })?;
    Ok(format!("{VERSION} in {}", target.display()))
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let java = java(&JAVA).context("OpenSearch needs Java 17 to 23, and none is installed")?;
    let (data, installed) = (layout.server_dir("opensearch")?, home(&folder(layout)));
    let config = layout.server_dir("opensearch/config")?;
    let temporary = layout.server_dir("opensearch/tmp")?;
    layout.write_for_server(&config.join("opensearch.yml"), &settings(layout, &data))?;
    layout.write_for_server(&config.join("log4j2.properties"), LOGGING)?;
    let mut argv = vec![text(&java), format!("-Xms{HEAP}"), format!("-Xmx{HEAP}")];
    // One collector thread, and no compiler that optimises for hours: the machine has other work.
    argv.extend(["-XX:+UseSerialGC".into(), "-XX:TieredStopAtLevel=1".into()]);
    argv.extend(["-XX:+ExitOnOutOfMemoryError".into(), "-Xss1m".into()]);
    argv.extend(PROPERTIES.map(|property| format!("-D{property}")));
    argv.push("--add-opens=java.base/java.io=ALL-UNNAMED".into());
    argv.push(format!("-Djava.io.tmpdir={}", temporary.display()));
    argv.push(format!("-Dopensearch.path.home={}", installed.display()));
    argv.push(format!("-Dopensearch.path.conf={}", config.display()));
    argv.extend(["-cp".into(), format!("{}/lib/*", installed.display())]);
    argv.push("org.opensearch.bootstrap.OpenSearch".into());
    Ok(vec![super::spec(layout, "opensearch", data, argv, Port::Search)])
}

/// Those of its own `jvm.options` that concern a server without logins.
const PROPERTIES: [&str; 14] = [
    "java.awt.headless=true",
    "file.encoding=UTF-8",
    "jna.nosys=true",
    "io.netty.noUnsafe=true",
    "io.netty.noKeySetOptimization=true",
    "io.netty.recycler.maxCapacityPerThread=0",
    "io.netty.allocator.numDirectArenas=0",
    "log4j.shutdownHookEnabled=false",
    "log4j2.disable.jmx=true",
    "java.locale.providers=SPI,COMPAT",
    "java.security.manager=allow",
    "java.util.concurrent.ForkJoinPool.common.threadFactory=org.opensearch.secure_sm.SecuredForkJoinWorkerThreadFactory",
    "opensearch.distribution.type=integ-test-zip",
    "opensearch.bundled_jdk=false",
];

fn settings(layout: &Layout, data: &Path) -> String {
    format!(
        "cluster.name: coro
node.name: search
network.host: 127.0.0.1
http.port: {}
transport.port: {}
discovery.type: single-node
path.data: {data}/data
path.logs: {data}/logs
node.store.allow_mmap: false
cluster.routing.allocation.disk.threshold_enabled: false
action.auto_create_index: false
action.destructive_requires_name: true
",
        layout.port(Port::Search),
        layout.port(Port::SearchTransport),
        data = data.display(),
    )
}

/// To its output, which the supervisor keeps short.
const LOGGING: &str = "status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] [%node_name]%marker%m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
";
