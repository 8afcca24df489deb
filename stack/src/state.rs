//! The supervisor's children, on disk: a later command finds them when the supervisor is gone.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, write_private};
use crate::process::{self, ProcessId};
use crate::spec::StopSignal;

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub supervisor: Option<ProcessId>,
    pub children: Vec<Leader>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub name: String,
    pub id: ProcessId,
    pub stop_signal: StopSignal,
}

impl State {
    /// The last written state; none when nothing is readable.
    pub fn read(dir: &Path) -> Self {
        std::fs::read_to_string(dir.join("state.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// # Errors
    /// When the folder is gone or full.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_private(&dir.join("state.json"), &serde_json::to_string_pretty(self)?)
    }
}

/// Every process of this stack that runs now: by what is on disk, and by mark.
pub fn members(layout: &Layout) -> Vec<ProcessId> {
    let state = State::read(&layout.dir);
    let leaders: Vec<ProcessId> = state.children.iter().map(|child| child.id).collect();
    let processes = process::all();
    let mut found = process::family(&processes, &leaders);
    found.extend(process::marked(&processes, &layout.member(), &layout.data));
    found.extend(state.supervisor.filter(|id| id.alive()));
    found.sort_unstable_by_key(|id| id.pid);
    found.dedup();
    found
}

/// Ends what a dead supervisor left behind: asks first, then kills. Returns how many there were.
///
/// # Errors
/// When some cannot be ended.
pub fn remove_orphans(layout: &Layout) -> Result<usize> {
    let state = State::read(&layout.dir);
    let found = members(layout);
    if found.is_empty() {
        return Ok(0);
    }
    for child in &state.children {
        child.id.signal(child.stop_signal.signal());
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while std::time::Instant::now() < deadline && state.children.iter().any(|child| child.id.alive()) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = process::kill_until_gone(Duration::from_secs(10), || members(layout));
    anyhow::ensure!(left.is_empty(), "processes of an earlier run cannot be ended: {left:?}");
    Ok(found.len())
}
