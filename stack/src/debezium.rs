//! Debezium's PostgreSQL connector, which `bench relay` measures the relay against, from Maven Central.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::logs;
use crate::output::Step;
use crate::servers::find_program;

const VERSION: &str = "3.6.1.Final";

/// Where the connector of this version is, or will be: a folder of Kafka Connect plugins.
pub fn plugins(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("debezium-{VERSION}"))
}

/// Downloads it once for all stacks: into a temporary folder, then moved into place.
///
/// # Errors
/// When Maven is missing or fails.
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    fs::create_dir_all(&layout.cache)?;
    let mut lock = fd_lock::RwLock::new(fs::File::create(layout.cache.join("debezium.lock"))?);
    let _one_at_a_time = lock.write()?;
    let target = plugins(layout);
    if target.is_dir() {
        return Ok("already there".to_owned());
    }
    step.now(format!("Debezium {VERSION} from Maven"));
    let temporary = layout.cache.join("debezium.download");
    if temporary.exists() {
        fs::remove_dir_all(&temporary)?;
    }
    fs::create_dir_all(&temporary)?;
    let maven = find_program("mvn").context("Maven is not installed: apt-get install maven")?;
    // The archive is complete, so no pom of theirs has to be resolved.
    let artifact = format!("io.debezium:debezium-connector-postgres:{VERSION}:tar.gz:plugin");
    let mut copy = Command::new(maven);
    copy.args(["-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"])
        .arg(format!("-Dartifact={artifact}"))
        .arg(format!("-DoutputDirectory={}", temporary.display()))
        .current_dir(&temporary);
    run(copy).context("Maven")?;
    let archives = fs::read_dir(&temporary)?.flatten().map(|entry| entry.path());
    let archive = archives
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .context("Maven brought no archive")?;
    let mut unpack = Command::new("tar");
    unpack.arg("xzf").arg(&archive).arg("-C").arg(&temporary);
    run(unpack).context("tar")?;
    fs::remove_file(&archive)?;
    fs::rename(&temporary, &target)?;
    Ok(format!("{VERSION} in {}", target.display()))
}

fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{}", logs::last_lines(&String::from_utf8_lossy(&said), 15));
    }
    Ok(())
}
