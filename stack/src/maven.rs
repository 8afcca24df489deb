//! Programs from Maven Central that come as an archive: downloaded once for all stacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::logs;
use crate::output::Step;
use crate::servers::find_program;

/// An archive, and the folder of the cache that holds what is in it.
pub struct Archive {
    /// As people write it, with its version.
    pub title: String,
    /// group:artifact:version:type, and the classifier if it has one.
    pub artifact: String,
    pub folder: PathBuf,
}

impl Archive {
    /// Unpacks it into a temporary folder, which `finish` completes, and which is then moved into place.
    ///
    /// # Errors
    /// When Maven is missing or fails, or `finish` does.
    pub fn unpack(
        &self,
        layout: &Layout,
        step: &Step,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<String> {
        fs::create_dir_all(&layout.cache)?;
        let beside = |extension: &str| {
            let mut path = self.folder.clone().into_os_string();
            path.push(extension);
            PathBuf::from(path)
        };
        let mut lock = fd_lock::RwLock::new(fs::File::create(beside(".lock"))?);
        let _one_at_a_time = lock.write()?;
        if self.folder.is_dir() {
            return Ok("already there".to_owned());
        }
        step.now(format!("{} from Maven", self.title));
        let temporary = beside(".download");
        if temporary.exists() {
            fs::remove_dir_all(&temporary)?;
        }
        let content = temporary.join("content");
        fs::create_dir_all(&content)?;
        let maven = find_program("mvn").context("Maven is not installed: apt-get install maven")?;
        let mut unpack = Command::new(maven);
        // The archive is complete, so no pom of theirs has to be resolved.
        unpack
            .args(["-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack"])
            .arg(format!("-Dartifact={}", self.artifact))
            .arg(format!("-DoutputDirectory={}", content.display()))
            .current_dir(&temporary);
        run(unpack).context("Maven")?;
        finish(&content)?;
        fs::rename(&content, &self.folder)?;
        fs::remove_dir_all(&temporary)?;
        Ok(format!("{} in {}", self.title, self.folder.display()))
    }
}

/// # Errors
/// When the program cannot be started or fails; the end of its output is in the message.
pub fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{}", logs::last_lines(&String::from_utf8_lossy(&said), 15));
    }
    Ok(())
}
