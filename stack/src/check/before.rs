//! The programs of the revision before this one, from which the drill of an upgrade begins.
//!
//! * It is the last released one (a tag such as v1.2.3), and while there is none the one before the newest migration. So the
//!   upgrade has a migration, and programs that really differ.
//! * Its sources come from git, into a folder named by the revision: cargo would take older files at the same path for built.
//! * It is built into the target folder of this revision, where the crates of others are compiled already. Its programs are moved
//!   from there to a folder of their own, and this revision's are put back, which compiles nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layout::Layout;
use crate::output::{Progress, Step};
use crate::{services, workspace};

/// The folder of its programs; nothing where git does not know an earlier revision.
///
/// # Errors
/// When it does not compile.
pub fn programs(layout: &Layout) -> Result<Option<PathBuf>> {
    let Ok(revision) = revision(&layout.root) else { return Ok(None) };
    let tree = workspace::target(layout).join("before").join(&revision);
    let folder = tree.join("programs");
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    Progress::default().step("the revision before", |step| {
        step.now(&revision);
        sources(layout, &revision, &tree)?;
        let built = build(layout, &tree, step);
        // Also after a failure: some of ours may have been replaced.
        let ours = workspace::build(layout, &[], step);
        built.and(ours).map(|()| revision.clone())
    })?;
    Ok(Some(folder))
}

/// The commit from which an upgrade begins.
fn revision(root: &Path) -> Result<String> {
    let commit = |name: &str| git(root, &["rev-parse", "--verify", &format!("{name}^{{commit}}")]);
    if let Ok(tag) = git(root, &["describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^"]) {
        return commit(&tag);
    }
    let newest = git(root, &["log", "-1", "--diff-filter=A", "--format=%H", "--", "sql/*/V*.sql"])?;
    ensure!(!newest.is_empty(), "no commit adds a migration");
    commit(&format!("{newest}^"))
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().context("git")?;
    let reason = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), reason.trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn sources(layout: &Layout, revision: &str, tree: &Path) -> Result<()> {
    fs::create_dir_all(tree).with_context(|| format!("cannot make {}", tree.display()))?;
    let archive = tree.join("sources.tar");
    let output = format!("--output={}", archive.display());
    git(&layout.root, &["archive", "--format=tar", &output, revision])?;
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(tree).status();
    ensure!(unpacked.context("tar")?.success(), "{} cannot be unpacked", archive.display());
    fs::remove_file(archive).context("the archive")
}

/// Its programs appear in their folder when all of them are there.
fn build(layout: &Layout, tree: &Path, step: &Step) -> Result<()> {
    let cargo = || {
        let mut command = workspace::command(layout, "cargo");
        command.current_dir(tree).env("CARGO_TARGET_DIR", workspace::target(layout));
        command
    };
    let mut metadata = cargo();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let known = binaries(&workspace::cargo(layout, metadata, "before", step)?)?;
    let ours = services::programs(layout);
    let programs: Vec<&str> = ours.into_iter().filter(|ours| known.iter().any(|name| name == ours)).collect();
    ensure!(programs.contains(&"migrate"), "the revision before has no program migrate");
    let mut command = cargo();
    command.args(["build", "--release", "--workspace"]);
    command.args(programs.iter().flat_map(|program| ["--bin", program]));
    workspace::cargo(layout, command, "before", step)?;
    let (folder, unfinished) = (tree.join("programs"), tree.join("programs.new"));
    fs::create_dir_all(&unfinished)?;
    for program in programs {
        fs::rename(workspace::binary(layout, program), unfinished.join(program)).context(program)?;
    }
    fs::rename(unfinished, folder).context("the programs of the revision before")
}

/// The programs of a workspace, by cargo's description of it.
fn binaries(metadata: &str) -> Result<Vec<String>> {
    let metadata: serde_json::Value = serde_json::from_str(metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata: packages")?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let is_program = |target: &&serde_json::Value| {
        target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
    };
    Ok(targets.filter(is_program).filter_map(|target| Some(target["name"].as_str()?.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of its own, in a temporary folder.
    struct Repository(PathBuf);

    impl Repository {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("stack-before-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let this = Self(folder);
            this.git(&["init", "--quiet"]);
            this
        }

        fn git(&self, arguments: &[&str]) -> String {
            let fixed =
                ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"];
            git(&self.0, &[&fixed, arguments].concat()).unwrap()
        }

        /// Writes a file, and commits it; returns the commit.
        fn commit(&self, path: &str) -> String {
            let file = self.0.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let before = fs::read_to_string(&file).unwrap_or_default();
            fs::write(file, format!("{before}x")).unwrap();
            self.git(&["add", "."]);
            self.git(&["commit", "--quiet", "--message", path]);
            self.git(&["rev-parse", "HEAD"])
        }
    }

    impl Drop for Repository {
        fn drop(&mut self) {
            let _left = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_upgrade_begins_before_the_newest_migration_or_at_the_last_release() {
        let repository = Repository::new("revision");
        let of = || revision(&repository.0);
        repository.commit("README.md");
        assert!(of().is_err(), "nothing to migrate");
        repository.commit("sql/a/V1__a.sql");
        let before = repository.commit("src/lib.rs");
        repository.commit("sql/b/V2__b.sql");
        assert_eq!(of().unwrap(), before);
        // An edited migration is none that is new, nor is a file beside them.
        repository.commit("sql/a/V1__a.sql");
        repository.commit("sql/src/lib.rs");
        assert_eq!(of().unwrap(), before);
        let released = repository.commit("src/lib.rs");
        repository.git(&["tag", "v1.0.0"]);
        assert_eq!(of().unwrap(), before, "a release is compared with what was before it");
        repository.commit("src/lib.rs");
        assert_eq!(of().unwrap(), released);
    }

    #[test]
    fn a_workspace_says_which_programs_it_has() {
        let metadata = r#"{"packages":[{"targets":[{"name":"a","kind":["lib"]},{"name":"b","kind":["bin"]}]},
            {"targets":[{"name":"c","kind":["bin"]},{"name":"it","kind":["test"]}]}]}"#;
        assert_eq!(binaries(metadata).unwrap(), ["b", "c"]);
    }
}
