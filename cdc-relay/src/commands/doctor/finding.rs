//! The result of a check.

use std::fmt;

use serde::Serialize;

use crate::source::contract::{Mismatch, is_sql};

/// The severities, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Ok,
    Warning,
    /// The relay does not start, or a writer gets an error. Nothing is lost, since nothing is emitted.
    WouldNotWork,
    WouldLoseData,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::WouldNotWork => "would not work",
            Self::WouldLoseData => "would lose data",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The name of the check. It stays the same from release to release.
    pub check: &'static str,
    /// The table, topic or setting that was checked.
    pub subject: String,
    pub found: String,
    /// Why it matters. Empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The fix: SQL, a setting, or a command, each on a line of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

impl Finding {
    fn new(severity: Severity, check: &'static str, subject: &str, found: String) -> Finding {
        let subject = subject.to_owned();
        Finding { severity, check, subject, found, why: String::new(), fix: Vec::new() }
    }

    pub fn ok(check: &'static str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::Ok, check, subject, found.into())
    }

    pub fn warning(check: &'static str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, check, subject, found.into())
    }

    pub fn would_not_work(check: &'static str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::WouldNotWork, check, subject, found.into())
    }

    pub fn would_lose_data(check: &'static str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(Severity::WouldLoseData, check, subject, found.into())
    }

    /// A mismatch that `run` refuses.
    pub fn of(mismatch: &Mismatch) -> Finding {
        let Mismatch { check, subject, found, why, fixes, loses, .. } = mismatch;
        let subject = if check.starts_with("table.") { format!("table {subject}") } else { subject.clone() };
        let severity = if *loses { Severity::WouldLoseData } else { Severity::WouldNotWork };
        let finding = Finding::new(severity, check, &subject, found.clone()).why(why);
        fixes.iter().fold(finding, |finding, fix| {
            let end = if is_sql(&fix.text) { ";" } else { "" };
            let then = mismatch.afterwards(fix).map_or_else(String::new, |then| format!("   -- {then}"));
            finding.fix(format!("{}{end}{then}", fix.text))
        })
    }

    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix.push(fix.into());
        self
    }
}
