//! `cargo stack test --only lint` and `--only deny`: what the compiler and the licences of others say.

use std::process::Stdio;

use anyhow::{Result, ensure};

use super::totals::Totals;
use crate::layout::Layout;
use crate::output::{Progress, say};
use crate::workspace::{self, Priority};

/// Places at which a processor or a relay ends. The whole workspace is named with them, so that no third-party crate
/// is built twice.
pub const FAILPOINTS: &str = "processor-svc/failpoints,cdc-relay/failpoints";

/// Runs a command of cargo, which says by itself what is wrong.
///
/// # Errors
/// When it fails.
pub fn cargo(layout: &Layout, arguments: &[&str]) -> Result<()> {
    let status = workspace::command(layout, "cargo").args(arguments).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Lints everything; a warning is an error.
pub fn lint(layout: &Layout, priority: Priority, totals: &mut Totals) {
    let arguments = ["clippy", "--release", "--workspace", "--all-targets", "--features", FAILPOINTS];
    totals.one(Progress::default().step("clippy", |step| {
        let mut command = workspace::command_with(layout, "cargo", priority);
        command.args(arguments).args(["--", "-D", "warnings"]);
        workspace::cargo(layout, command, "lint", step)?;
        Ok(String::new())
    }));
}

/// Installing it takes minutes, so that is done only when asked for; advisories come from the network.
pub fn deny(layout: &Layout, totals: &mut Totals) {
    let installed = || {
        let mut version = workspace::command(layout, "cargo");
        version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    if !installed() && std::env::var("STACK_DENY").is_ok_and(|wanted| wanted == "1") {
        totals.one(cargo(layout, &["install", "cargo-deny", "--locked", "--quiet"]));
    }
    if !installed() {
        return say("cargo-deny is not installed: skipped (STACK_DENY=1 installs it, which takes minutes)");
    }
    totals.one(cargo(layout, &["deny", "check", "bans", "licenses", "sources"]));
    let mut fetch = workspace::command(layout, "cargo");
    fetch.args(["deny", "fetch", "db"]).stdout(Stdio::null()).stderr(Stdio::null());
    if fetch.status().is_ok_and(|status| status.success()) {
        totals.one(cargo(layout, &["deny", "check", "advisories"]));
    } else {
        say("the advisory database cannot be reached: advisories skipped");
    }
}
