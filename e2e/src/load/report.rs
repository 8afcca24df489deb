//! Reports a load: a table for people, one JSON document for programs.

use anyhow::{Result, bail};
use coroctl::audit::Finding;
use serde::Serialize;

use super::figures::{Figures, faults, knee};
use super::profile::Profile;
use crate::bench::audited::Audited;
use crate::bench::figures::{machine, table};

#[derive(Serialize)]
pub struct Report {
    load: String,
    machine: String,
    profile: Profile,
    steps: Vec<Figures>,
    /// The highest rate that was held, if the load looks for it.
    knee: Option<u32>,
    faults: Vec<String>,
    #[serde(flatten)]
    audit: Audited,
}

impl Report {
    pub fn new(
        load: &str,
        profile: Profile,
        steps: Vec<Figures>,
        with_limits: bool,
        findings: &[Finding],
    ) -> Self {
        Self {
            load: load.to_owned(),
            machine: machine(),
            knee: knee(&steps, &profile.limits).filter(|_| profile.finds_knee),
            faults: faults(&profile, &steps, with_limits),
            audit: Audited::new(findings),
            profile,
            steps,
        }
    }

    /// # Errors
    /// When it cannot be written as JSON.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        saga::say!("{}\n\n{}", self.table(), self.machine);
        if self.profile.finds_knee {
            saga::say!("{}", self.knee_in_words());
        }
        for fault in &self.faults {
            saga::say!("{fault}.");
        }
        self.audit.print("Every accepted payment has ended as planned");
        Ok(())
    }

    fn knee_in_words(&self) -> String {
        let all_held = self.knee.is_some() && self.knee == self.profile.steps.last().map(|step| step.rate);
        match self.knee {
            Some(rate) if all_held => {
                format!("The knee is above {rate} payments per second: every step was held.")
            }
            Some(rate) => format!("The knee is {rate} payments per second: the highest rate that was held."),
            None => "The knee is below the first step: no step was held.".to_owned(),
        }
    }

    fn table(&self) -> String {
        let header = [
            "RATE",
            "SECONDS",
            "SETTLED",
            "DROPPED",
            "REFUSED",
            "NOT ENDED",
            "ACCEPT P50",
            "P99",
            "SETTLE P50",
            "P95",
            "P99",
            "MAX",
            "HELD",
        ];
        let mut table = table(&header);
        for figures in &self.steps {
            let Figures { step, accept, settle, .. } = figures;
            let refused: u64 = figures.refused.values().sum();
            let counts = [settle.count, figures.dropped, refused, figures.unsettled];
            let ms =
                [accept.p50_ms, accept.p99_ms, settle.p50_ms, settle.p95_ms, settle.p99_ms, settle.max_ms];
            let held = if figures.is_held(&self.profile.limits) { "yes" } else { "no" };
            let mut row = vec![step.rate.to_string(), step.seconds.to_string()];
            row.extend(counts.map(|count| count.to_string()));
            row.extend(ms.map(|ms| format!("{ms:.1}")));
            row.push(held.to_owned());
            table.add_row(row);
        }
        table.trim_fmt()
    }

    /// # Errors
    /// When the load failed, or an invariant is broken.
    pub fn verdict(&self) -> Result<()> {
        let audited = self.audit.verdict();
        if let Some(first) = self.faults.first() {
            let audited = audited.err().map_or_else(String::new, |error| format!("; {error:#}"));
            bail!(
                "the load {} failed in {} points, the first: {first}{audited}",
                self.load,
                self.faults.len()
            );
        }
        audited
    }
}
