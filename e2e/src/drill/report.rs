//! Reports a drill: lines for people, one JSON document for programs.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::bench::audited::Audited;

/// What was seen of one alert.
#[derive(Clone, Debug, Serialize)]
pub struct ObservedAlert {
    pub alert: String,
    /// Seconds from the breaking until it fired.
    pub fired_after: f64,
    /// The seconds within which it has to fire.
    pub listed: u64,
    /// Seconds from the last script of the runbook until it was gone.
    pub ended_after: Option<f64>,
}

#[derive(Serialize)]
pub struct Report {
    pub drill: String,
    pub alerts: Vec<ObservedAlert>,
    /// How many scripts of runbooks were run.
    pub scripts: usize,
    pub seconds: f64,
    pub accepted: usize,
    /// Ended payments by status.
    pub ended: BTreeMap<String, u64>,
    /// Requests that were not answered 201 or 200, by their answers.
    pub failed_requests: BTreeMap<String, usize>,
    /// What else was seen.
    pub notes: Vec<String>,
    pub misses: Vec<String>,
    #[serde(flatten)]
    pub audit: Audited,
}

impl Report {
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        for ObservedAlert { alert, fired_after, listed, ended_after } in &self.alerts {
            let end = ended_after.map(|seconds| format!(", gone {seconds:.0} s after the runbook"));
            saga::say!(
                "{alert} fired after {fired_after:.0} s (listed: {listed} s){}.",
                end.unwrap_or_default()
            );
        }
        let ended: Vec<String> =
            self.ended.iter().map(|(status, count)| format!("{count} {status}")).collect();
        saga::say!("{} payments were accepted: {}.", self.accepted, ended.join(", "));
        for (answer, count) in &self.failed_requests {
            saga::say!("{count} requests failed: {answer}");
        }
        for note in &self.notes {
            saga::say!("{note}.");
        }
        for miss in &self.misses {
            saga::say!("{miss}.");
        }
        self.audit.print("Every accepted payment has ended");
        Ok(())
    }

    /// # Errors
    /// When something was missed, or an invariant is broken.
    pub fn verdict(&self) -> Result<()> {
        if let Some(first) = self.misses.first() {
            bail!("the drill {} failed: {first}", self.drill);
        }
        self.audit.verdict()
    }
}
