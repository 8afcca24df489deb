//! Which packages differ from main: what `cargo stack test --quick` tests.

use anyhow::{Context, Result, ensure};

use crate::layout::Layout;
use crate::workspace;

/// The packages with files that differ from where this branch left main, committed or not. A change of what all packages
/// share (the lock file, the toolchain) names them all.
///
/// # Errors
/// Outside of a git work tree, or where there is no branch main.
pub fn packages(layout: &Layout) -> Result<Vec<String>> {
    let base =
        ["main", "origin/main"].iter().find_map(|main| git(layout, &["merge-base", "HEAD", main]).ok());
    let base = base.context("no branch main to compare with: fetch it, or run `cargo stack test`")?;
    let mut paths = git(layout, &["diff", "--name-only", base.trim()])?;
    paths.push_str(&git(layout, &["ls-files", "--others", "--exclude-standard"])?);
    let all = std::fs::read_dir(&layout.root)?
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.join("Cargo.toml").is_file()))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    Ok(of_paths(&paths, all.collect()))
}

/// Those of all packages that a list of changed paths touches.
fn of_paths(paths: &str, mut all: Vec<String>) -> Vec<String> {
    const SHARED: [&str; 4] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];
    let shared = paths.lines().any(|path| SHARED.contains(&path));
    let folders: Vec<&str> = paths.lines().filter_map(|path| Some(path.split_once('/')?.0)).collect();
    all.retain(|package| shared || folders.contains(&package.as_str()));
    all.sort_unstable();
    all
}

fn git(layout: &Layout, arguments: &[&str]) -> Result<String> {
    let output = workspace::command(layout, "git").args(arguments).output().context("git")?;
    let reason = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), reason.trim());
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_belongs_to_its_first_folder_and_shared_files_to_all() {
        let of = |paths: &str| of_paths(paths, ["sql", "saga", "stack"].map(str::to_owned).into());
        assert_eq!(of("saga/src/lib.rs\nsaga/golden/a.json\nREADME.md\n"), ["saga"]);
        assert_eq!(of("stack/src/up.rs\nsql/seed.sql\n"), ["sql", "stack"]);
        assert_eq!(of("docs/BENCHMARKS.md\nsagas/x\n"), [""; 0]);
        assert_eq!(of("Cargo.lock\n"), ["saga", "sql", "stack"]);
    }
}
