//! The parts of a stack that are there on request: `up --with search`.
//!
//! * A stack keeps its extras: `up --with` adds to them, and every later command knows them. `clean` ends them.
//! * A part that nobody asked for is neither installed, nor built, nor started.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::layout::{Layout, write_private};

/// A part that is there on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Extra {
    /// Full-text search over payments: OpenSearch, and two instances of search-indexer.
    Search,
    /// Notifications and fraud alerts: notifier, fraud, a relay of its alerts, and an SMTP server.
    Notify,
    /// The continuous audit: auditor.
    Audit,
    /// Traces of payments: tracer, an OpenTelemetry Collector, and Zipkin, which shows them.
    Traces,
    /// Metrics of the machine and of the servers that expose none by themselves: exporters, and dashboards' data with them.
    Observe,
}

impl Extra {
    /// Its name on the command line and on disk.
    fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Notify => "notify",
            Self::Audit => "audit",
            Self::Traces => "traces",
            Self::Observe => "observe",
        }
    }

    /// The extras of a stack. A name that this version does not know is none of them.
    pub fn of(layout: &Layout) -> BTreeSet<Self> {
        let kept = fs::read_to_string(layout.extras_file()).unwrap_or_default();
        Self::value_variants()
            .iter()
            .copied()
            .filter(|extra| kept.lines().any(|line| line == extra.name()))
            .collect()
    }

    /// Adds extras to those of a stack.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn add(layout: &Layout, wanted: &[Self]) -> Result<()> {
        let kept = Self::of(layout);
        if wanted.iter().all(|extra| kept.contains(extra)) {
            return Ok(());
        }
        let all: BTreeSet<Self> = kept.into_iter().chain(wanted.iter().copied()).collect();
        let lines: String = all.iter().map(|extra| format!("{}\n", extra.name())).collect();
        write_private(&layout.extras_file(), &lines).context("cannot keep the choice of --with")
    }

    /// Whether a part that belongs to `extra`, or to every stack, is in this one.
    pub fn includes(kept: &BTreeSet<Self>, extra: Option<Self>) -> bool {
        extra.is_none_or(|extra| kept.contains(&extra))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_keeps_its_extras_until_its_folder_is_removed() {
        let dir = std::env::temp_dir().join(format!("stack-extras-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        assert!(Extra::of(&layout).is_empty());
        Extra::add(&layout, &[]).unwrap();
        assert!(!layout.extras_file().exists(), "nothing was asked for");
        Extra::add(&layout, &[Extra::Search, Extra::Search]).unwrap();
        Extra::add(&layout, &[]).unwrap();
        assert_eq!(Extra::of(&layout), BTreeSet::from([Extra::Search]));
        // A later version may know more.
        fs::write(layout.extras_file(), "search\nsomething\n").unwrap();
        assert_eq!(Extra::of(&layout), BTreeSet::from([Extra::Search]));
        fs::remove_dir_all(&layout.dir).unwrap();
        assert!(Extra::of(&layout).is_empty());
    }

    #[test]
    fn the_name_on_disk_is_that_of_the_command_line() {
        for extra in Extra::value_variants() {
            assert_eq!(Extra::from_str(extra.name(), false).as_ref(), Ok(extra));
        }
    }
}
