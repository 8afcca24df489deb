//! The audit at the end of a benchmark: figures of a system that lost a payment or a coin are not figures.

use anyhow::{Result, bail};
use coroctl::audit::{Finding, report};
use serde::Serialize;

/// Part of a benchmark's report.
#[derive(Serialize)]
pub struct Audited {
    violations: Vec<String>,
    checks: usize,
    /// Of the checks, those that the stack lacks something for.
    skipped: usize,
    /// How many hold, for people.
    #[serde(skip)]
    closing: String,
}

impl Audited {
    pub fn new(findings: &[Finding]) -> Self {
        let violations = findings.iter().filter(|finding| finding.violations > 0).map(describe).collect();
        let skipped = findings.iter().filter(|finding| finding.skipped.is_some()).count();
        Self { violations, checks: findings.len(), skipped, closing: report::closing(findings) }
    }

    /// `claim`: what else holds if the audit does, as the beginning of a sentence.
    pub fn print(&self, claim: &str) {
        match self.violations.as_slice() {
            [] => saga::say!("{claim}; {}", self.closing),
            violations => saga::say!("The audit found:\n{}", violations.join("\n")),
        }
    }

    /// # Errors
    /// When an invariant is broken.
    pub fn verdict(&self) -> Result<()> {
        match self.violations.len() {
            0 => Ok(()),
            broken => bail!("{broken} of {} checks of the audit fail", self.checks),
        }
    }
}

fn describe(finding: &Finding) -> String {
    let Finding { name, promise, examined, violations, first, .. } = finding;
    let first = first.as_deref().unwrap_or("?");
    format!("{name} ({promise}): {violations} of {examined}, the first {first}")
}
