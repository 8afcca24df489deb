//! Which packages differ from main: what `cargo stack test --quick` tests.

use std::path::Path;

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
    let mut all = packages_in(&layout.root, "");
    all.extend(packages_in(&layout.root, "consumers/"));
    Ok(of_paths(&paths, &all))
}

/// The folders of the packages in a folder of the workspace, as paths from the root.
fn packages_in(root: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.join("Cargo.toml").is_file()))
        .filter_map(|path| Some(format!("{folder}{}", path.file_name()?.to_str()?)))
        .collect()
}

/// The names of those of all packages that a list of changed paths touches.
fn of_paths(paths: &str, all: &[String]) -> Vec<String> {
    const SHARED: [&str; 4] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];
    let shared = paths.lines().any(|path| SHARED.contains(&path));
    let is_in =
        |path: &str, folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    let touched = all.iter().filter(|folder| shared || paths.lines().any(|path| is_in(path, folder)));
    let name = |folder: &String| folder.rsplit('/').next().unwrap_or(folder).to_owned();
    let mut names: Vec<String> = touched.map(name).collect();
    names.sort_unstable();
    names
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
    fn a_path_belongs_to_the_package_whose_folder_it_is_in_and_shared_files_to_all() {
        let of = |paths: &str| of_paths(paths, &["sql", "saga", "stack"].map(str::to_owned));
        let nested = of_paths("consumers/a/src/lib.rs\n", &["consumers/a", "consumers/b"].map(str::to_owned));
        assert_eq!(nested, ["a"]);
        assert_eq!(of("saga/src/lib.rs\nsaga/golden/a.json\nREADME.md\n"), ["saga"]);
        assert_eq!(of("stack/src/up.rs\nsql/seed.sql\n"), ["sql", "stack"]);
        assert_eq!(of("docs/BENCHMARKS.md\nsagas/x\n"), [""; 0]);
        assert_eq!(of("Cargo.lock\n"), ["saga", "sql", "stack"]);
    }
}
