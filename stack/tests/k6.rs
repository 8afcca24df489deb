//! Tests `cargo stack k6`.
//!
//! * k6 is under the AGPL: the stack uses the one on the PATH, and never installs one.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: i32 = 69;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stack-k6-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A program that leaves a trace when it is run.
    fn program(&self, name: &str, mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n: > {}/ran-{name}\n", self.0.display())).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn ran(&self, name: &str) -> bool {
        self.0.join(format!("ran-{name}")).exists()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn k6(path: &Path, folder: &Folder, load: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stack"));
    // A cache of its own, so that nothing an earlier version built is found.
    command
        .args(["k6", load])
        .env("PATH", path)
        .env("HOME", &folder.0)
        .env("STACK_DIR", folder.0.join("stack"));
    command.env("STACK_PORT", "32500").output().unwrap()
}

#[test]
fn without_a_k6_it_says_so_and_installs_nothing() {
    let folder = Folder::new("none");
    // A file that is not executable is not k6; a Go on the PATH must not build one.
    folder.program("k6", 0o644);
    folder.program("go", 0o755);
    let output = k6(&folder.0, &folder, "smoke");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(UNAVAILABLE), "{stderr}");
    for part in ["k6", "PATH", "AGPL", "Grafana", "documentation"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert!(!folder.ran("go"), "k6 was about to be built");
}

#[test]
fn the_k6_on_the_path_is_the_one() {
    let folder = Folder::new("there");
    folder.program("k6", 0o755);
    let output = k6(&folder.0, &folder, "smoke");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    // There is a k6; what is missing is the stack.
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cargo stack up"), "{stderr}");
    assert!(!folder.ran("k6"), "there is no stack to put a load on");
}

/// An unknown load is the first error, with or without k6.
#[test]
fn an_unknown_load_is_named_first() {
    let folder = Folder::new("unknown");
    let output = k6(&folder.0, &folder, "nothing");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("smoke"), "{stderr}");
}
