//! The Java machines that are installed.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::program::find_program;

/// A Java of one of these versions: `JAVA_HOME`, the one on the path, any under /usr/lib/jvm.
pub fn java(versions: &RangeInclusive<u32>) -> Option<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let installed = installed.map(|entry| entry.path().join("bin/java"));
    home.into_iter().chain(find_program("java")).chain(installed).find(|java| {
        let output = Command::new(java).arg("-version").stdin(Stdio::null()).output();
        output.is_ok_and(|output| {
            java_version(&String::from_utf8_lossy(&output.stderr))
                .is_some_and(|version| versions.contains(&version))
        })
    })
}

/// The major version in the output of `java -version`; 1.8 is 8.
fn java_version(text: &str) -> Option<u32> {
    let quoted = text.split('"').nth(1)?;
    let mut numbers = quoted.split(['.', '-', '_', '+']).map(str::parse::<u32>);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_version("java version \"1.8.0_292\""), Some(8));
        assert_eq!(java_version("openjdk version \"21-ea\" 2023"), Some(21));
        assert_eq!(java_version("command not found"), None);
    }
}
