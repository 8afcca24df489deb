//! `cargo stack down` and `clean`: nothing stays behind, and that is checked.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::control::{Client, Request};
use crate::layout::Layout;
use crate::output::say;
use crate::{process, state};

/// # Errors
/// When a process of the stack is still there at the end.
pub fn down(layout: &Layout) -> Result<()> {
    let mut lock = fd_lock::RwLock::new(fs::File::create(layout.dir.join("command.lock"))?);
    let _alone = lock.try_write().context("another `up` or `down` of this stack is under way")?;
    let began = Instant::now();
    let members = state::members(layout).len();
    if let Some(mut client) = Client::connect(&layout.socket()) {
        // Read first: it clears its state file before it answers.
        let supervisor = state::State::read(&layout.dir).supervisor;
        client.send(&Request::Shutdown)?;
        while supervisor.is_some_and(process::ProcessId::alive) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let orphans = state::remove_orphans(layout)?;
    // The supervisor's own end comes just after its answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut left = state::members(layout);
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        left = state::members(layout);
    }
    if !left.is_empty() {
        let pids: Vec<String> = left.iter().map(|id| id.pid.to_string()).collect();
        bail!("these processes of the stack did not end, even by SIGKILL: pid {}", pids.join(", "));
    }
    state::State::default().write(&layout.dir)?;
    let _stale = fs::remove_file(layout.socket());
    let seconds = began.elapsed().as_secs_f64();
    match (members, orphans) {
        (0, 0) => say("Nothing was running."),
        (all, 0) => say(&format!("Down in {seconds:.1} s: {all} processes ended, none is left.")),
        (all, some) => say(&format!(
            "Down in {seconds:.1} s: {all} processes ended ({some} without a supervisor), none is left."
        )),
    }
    Ok(())
}

/// Brings the stack down and removes its data, logs and secrets. Downloads stay: other stacks use them.
///
/// # Errors
/// When it is not confirmed, or something cannot be removed.
pub fn clean(layout: &Layout, yes: bool) -> Result<()> {
    if !yes {
        eprint!("Remove all data in {} and {}? [y/N] ", layout.dir.display(), layout.data.display());
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was removed, since the answer was no");
        }
    }
    down(layout)?;
    remove(layout)?;
    say("Removed.");
    Ok(())
}

/// Removes everything that a stack which is down keeps on disk.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(layout: &Layout) -> Result<()> {
    for folder in [&layout.data, &layout.dir] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}
