//! OpenSearch (one node) from Maven Central: the server and the modules that it needs here, without a Java of its own.
//!
//! * It has no logins: whoever reaches its port may read and change everything. So it listens on the loopback only.
//! * It makes no index by itself: a document of an index that nobody made is an error, not an index without a mapping.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::java::java;
use super::text;
use crate::layout::{Layout, Port};
use crate::maven::{Artifact, Content, Download};
use crate::output::Step;
use crate::spec::Spec;

pub const VERSION: &str = "2.19.4";
/// Newer ones have no security manager, which 2.x installs at its start.
pub const JAVA: RangeInclusive<u32> = 17..=23;
/// Enough for millions of payments: what is searched stays in the page cache.
const HEAP: &str = "256m";
/// The one module that the archive lacks and that a mapping needs: tokenizers, filters, analyzers.
const ANALYSIS: &str = "analysis-common";
const ANALYSIS_PLUGIN: &str = "org.opensearch.analysis.common.CommonAnalysisPlugin";

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
    let target = folder(layout);
    let server = Artifact {
        group: "org.opensearch.distribution.integ-test-zip",
        name: "opensearch",
        version: VERSION,
        kind: "zip",
        classifier: None,
    };
    let analysis = Artifact::jar("org.opensearch.plugin", ANALYSIS, VERSION);
    let copied = layout.cache.join(format!("opensearch-modules-{VERSION}"));
    let what = format!("OpenSearch {VERSION} from Maven, 56 MB: up to a minute");
    let modules = Download { content: Content::File(analysis), target: &copied };
    modules.ensure(layout, step, &what, |_| Ok(()))?;
    let download = Download { content: Content::Archive(server), target: &target };
    download.ensure(layout, step, &what, |content| {
        let home = home(content);
        ensure!(home.join("lib").is_dir(), "the archive has no folder {}/lib", home.display());
        fs::create_dir_all(home.join("plugins"))?;
        add_module(&home, &copied)
    })?;
    Ok(format!("{VERSION} in {}", target.display()))
}

/// Makes a module of the jar that is published without its descriptor.
fn add_module(home: &Path, copied: &Path) -> Result<()> {
    let module = home.join("modules").join(ANALYSIS);
    let jar = format!("{ANALYSIS}-{VERSION}.jar");
    fs::create_dir_all(&module)?;
    fs::copy(copied.join(&jar), module.join(&jar)).with_context(|| format!("{jar} was not downloaded"))?;
    let descriptor = format!(
        "name={ANALYSIS}
description=Tokenizers, filters and analyzers
classname={ANALYSIS_PLUGIN}
version={VERSION}
opensearch.version={VERSION}
java.version=11
"
    );
    fs::write(module.join("plugin-descriptor.properties"), descriptor)?;
    Ok(())
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
    "opensearch.distribution.type=zip",
    "opensearch.bundled_jdk=false",
];

pub fn settings(layout: &Layout, data: &Path) -> String {
    format!(
        "cluster.name: coro
node.name: search
network.host: 127.0.0.1
http.port: {}
transport.port: {}
discovery.type: single-node
path.data: {data}/data
path.logs: {data}/logs
path.repo: {data}/snapshots
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
