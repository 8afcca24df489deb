//! `coroctl audit`: its options, its output and its exit code.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use uuid::Uuid;

use super::finding::Finding;
use super::targets::Targets;
use super::{Options, report};
use crate::explain;
use crate::stack::Stack;

#[derive(Args)]
pub struct Audit {
    /// Make only the checks that hold in every moment, also under load.
    #[arg(long)]
    pub live: bool,
    /// Print the findings as a JSON object.
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait until no payment is under way.
    #[arg(long, value_name = "SECONDS", alias = "settle", default_value_t = 60)]
    pub wait: u64,
    /// Leave out a record that somebody has explained: the parked_id of a parked message, or topic/partition/offset of a
    /// dead letter or of a record that is no event. Repeat the option for more.
    #[arg(long, value_name = "ID")]
    pub explained: Vec<String>,
    /// A file with the payment_ids of 201s that a caller has noted, one per line: none may be missing.
    #[arg(long, value_name = "FILE")]
    pub accepted: Option<PathBuf>,
    #[command(flatten)]
    pub targets: Targets,
}

/// Runs the audit and prints its report; the answer is the exit code.
pub async fn run(audit: &Audit) -> u8 {
    match report(audit).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nThe audit could not be made: {error:#}");
            report::NOT_CHECKED
        }
    }
}

async fn report(audit: &Audit) -> Result<u8> {
    let options = Options {
        live: audit.live,
        wait: Duration::from_secs(audit.wait),
        explained: audit.explained.iter().cloned().collect(),
        accepted: audit.accepted.as_deref().map_or_else(|| Ok(Vec::new()), accepted)?,
    };
    let (findings, notes) = super::check(&audit.targets, &options).await?;
    if audit.json {
        saga::say!("{}", report::machine(&findings, &notes)?);
    } else {
        saga::say!("{}", report::text(&findings, &notes));
        if let Some(life) = life(&findings).await {
            saga::say!("\n{life}");
        }
    }
    Ok(report::code(&findings))
}

fn accepted(path: &Path) -> Result<Vec<Uuid>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| line.parse().with_context(|| format!("{}: {line:?} is no payment_id", path.display())))
        .collect()
}

/// The life of the first offending payment, if the addresses of a whole stack are known.
async fn life(findings: &[Finding]) -> Option<String> {
    let (name, payment_id) = findings.iter().find_map(|finding| Some((finding.name, finding.payment_id?)))?;
    let stack = Stack::from_env().ok()?;
    match explain::life(&stack, payment_id).await {
        Ok(life) => Some(format!("The first offender of {name}:\n\n{life}")),
        Err(error) => Some(format!("The first offender of {name}: {payment_id} ({error:#}).")),
    }
}
