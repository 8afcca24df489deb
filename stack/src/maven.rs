//! Downloads from Maven Central, once for all stacks.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::layout::Layout;
use crate::logs;
use crate::output::Step;
use crate::program::find_program;

/// The plugin whose goals put artifacts into a folder.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1";

/// An artifact: group, name, version, its type where it is no jar, and its classifier if it has one.
#[derive(Debug, Clone, Copy)]
pub struct Artifact {
    pub group: &'static str,
    pub name: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub classifier: Option<&'static str>,
}

impl Artifact {
    pub const fn jar(group: &'static str, name: &'static str, version: &'static str) -> Self {
        Self { group, name, version, kind: "jar", classifier: None }
    }

    /// As the command line of Maven names it.
    fn coordinates(&self) -> String {
        let Self { group, name, version, kind, classifier } = self;
        let classifier = classifier.map(|classifier| format!(":{classifier}")).unwrap_or_default();
        format!("{group}:{name}:{version}:{kind}{classifier}")
    }
}

/// What belongs into the folder.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These jars, and all that they depend on.
    Jars(&'a [Artifact]),
    /// This file alone.
    File(Artifact),
    /// What is in this archive. It is complete, so nothing that its project depends on is resolved.
    Archive(Artifact),
}

/// What is to be downloaded, and where it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    pub content: Content<'a>,
    pub target: &'a Path,
}

impl Download<'_> {
    /// Downloads it, unless it is there. `finish` changes the folder before it is moved into place.
    ///
    /// # Errors
    /// When Maven is missing or fails, or `finish` does.
    pub fn ensure(
        &self,
        layout: &Layout,
        step: &Step,
        what: &str,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        cache::once(layout, self.target, |scratch| {
            step.now(what);
            let content = scratch.join("content");
            fs::create_dir(&content)?;
            run(self.command(scratch, &content)?).context("Maven failed")?;
            finish(&content)?;
            Ok(content)
        })
    }

    fn command(&self, scratch: &Path, content: &Path) -> Result<Command> {
        let maven = find_program("mvn").context("Maven is not installed: apt-get install maven")?;
        let mut command = Command::new(maven);
        command.args(["-B", "-q"]).current_dir(scratch);
        match self.content {
            Content::Jars(artifacts) => {
                fs::write(scratch.join("pom.xml"), project(artifacts))?;
                command.arg(format!("{PLUGIN}:copy-dependencies")).arg("-DincludeScope=runtime");
            }
            Content::File(artifact) => {
                command.arg(format!("{PLUGIN}:copy")).arg(format!("-Dartifact={}", artifact.coordinates()));
            }
            Content::Archive(artifact) => {
                command.arg(format!("{PLUGIN}:unpack")).arg(format!("-Dartifact={}", artifact.coordinates()));
            }
        }
        command.arg(format!("-DoutputDirectory={}", content.display()));
        Ok(command)
    }
}

/// A project that depends on the artifacts and is nothing else.
fn project(artifacts: &[Artifact]) -> String {
    let dependency = |artifact: &Artifact| {
        let Artifact { group, name, version, kind, .. } = artifact;
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version><type>{kind}</type></dependency>"
        )
    };
    let dependencies: String = artifacts.iter().map(dependency).collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>
<groupId>coro</groupId><artifactId>download</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>{dependencies}</dependencies></project>"
    )
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
