//! Downloads from Maven Central, once for all stacks: into a temporary folder, then moved into place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::find_program;
use crate::layout::Layout;
use crate::output::Step;

/// The goals that put the artifacts of a project into a folder.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1";

/// An artifact: group, name, version, and its type where it is no jar.
pub struct Artifact {
    pub group: &'static str,
    pub name: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// How artifacts are put into the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The files, and those of everything that they depend on.
    Copy,
    /// The files alone.
    CopyAlone,
    /// The content of the archives alone.
    Unpack,
}

/// What is to be downloaded, and where it belongs.
pub struct Download<'a> {
    /// Of its lock and its temporary folder.
    pub name: &'a str,
    pub artifacts: &'a [Artifact],
    pub goal: Goal,
    pub target: PathBuf,
}

impl Download<'_> {
    /// Downloads it, unless it is there. `finish` changes the folder before it is moved into place.
    ///
    /// # Errors
    /// When Maven is missing or fails.
    pub fn ensure(
        &self,
        layout: &Layout,
        step: &Step,
        what: &str,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        fs::create_dir_all(&layout.cache)?;
        let lock = layout.cache.join(format!("{}.lock", self.name));
        let mut lock = fd_lock::RwLock::new(fs::File::create(lock)?);
        let _one_at_a_time = lock.write()?;
        if self.target.is_dir() {
            return Ok(());
        }
        step.now(what);
        let temporary = layout.cache.join(format!("{}.download", self.name));
        if temporary.exists() {
            fs::remove_dir_all(&temporary)?;
        }
        let content = temporary.join("content");
        fs::create_dir_all(&content)?;
        fs::write(temporary.join("pom.xml"), self.project())?;
        self.run(&temporary.join("pom.xml"), &content)?;
        finish(&content)?;
        fs::rename(&content, &self.target)?;
        fs::remove_dir_all(&temporary)?;
        Ok(())
    }

    fn run(&self, project: &Path, content: &Path) -> Result<()> {
        let maven = find_program("mvn").context("Maven is not installed")?;
        let (goal, option) = match self.goal {
            Goal::Copy => ("copy-dependencies", "-DincludeScope=runtime"),
            Goal::CopyAlone => ("copy-dependencies", "-DexcludeTransitive=true"),
            Goal::Unpack => ("unpack-dependencies", "-DexcludeTransitive=true"),
        };
        let output = Command::new(maven)
            .args(["-B", "-q", "-f"])
            .arg(project)
            .arg(format!("{PLUGIN}:{goal}"))
            .arg(option)
            .arg(format!("-DoutputDirectory={}", content.display()))
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("Maven failed:\n{}", crate::logs::last_lines(&String::from_utf8_lossy(&output.stdout), 15));
        }
        Ok(())
    }

    /// A project that depends on the artifacts and is nothing else.
    fn project(&self) -> String {
        let dependency = |artifact: &Artifact| {
            let Artifact { group, name, version, kind } = artifact;
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version><type>{kind}</type></dependency>"
            )
        };
        let dependencies: String = self.artifacts.iter().map(dependency).collect();
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>
<groupId>coro</groupId><artifactId>{}</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>{dependencies}</dependencies></project>",
            self.name
        )
    }
}
