//! `cargo stack audit`.
#![allow(clippy::print_stdout, reason = "its report is its output")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use uuid::Uuid;

use super::finding::Finding;
use super::places::Places;
use super::{Options, look, report};
use crate::explain;
use crate::stack::Stack;

#[derive(Args)]
pub struct Audit {
    /// Only what holds in every moment, also under load.
    #[arg(long)]
    pub live: bool,
    /// Print an object for machines.
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait for everything to come to rest.
    #[arg(long, default_value_t = 60)]
    pub settle: u64,
    /// Something that somebody has looked into: the parked_id of a message set aside, or topic/partition/offset of a dead
    /// letter or of a record that is no event of ours. It is left out, once and for every check.
    #[arg(long, value_name = "ID")]
    pub explained: Vec<String>,
    /// A file with the payment_id of each 201 that a caller noted, one a line: none may be missing.
    #[arg(long, value_name = "FILE")]
    pub accepted: Option<PathBuf>,
    #[command(flatten)]
    pub places: Places,
}

/// Looks, prints, and answers the exit code.
pub async fn run(audit: &Audit) -> u8 {
    match report(audit).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nThe audit could not look: {error:#}");
            report::COULD_NOT_LOOK
        }
    }
}

async fn report(audit: &Audit) -> Result<u8> {
    let options = Options {
        live: audit.live,
        settle: Duration::from_secs(audit.settle),
        explained: audit.explained.iter().cloned().collect(),
        accepted: audit.accepted.as_deref().map_or_else(|| Ok(Vec::new()), accepted)?,
    };
    let (findings, notes) = look(&audit.places, &options).await?;
    if audit.json {
        println!("{}", report::machine(&findings, &notes)?);
    } else {
        println!("{}", report::text(&findings, &notes));
        if let Some(life) = life(&findings).await {
            println!("\n{life}");
        }
    }
    Ok(report::code(&findings))
}

fn accepted(path: &Path) -> Result<Vec<Uuid>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.parse().with_context(|| format!("{}: {line:?}", path.display()))).collect()
}

/// The life of the first payment that offends, where there is a stack to ask.
async fn life(findings: &[Finding]) -> Option<String> {
    let (name, payment_id) = findings.iter().find_map(|finding| Some((finding.name, finding.payment_id?)))?;
    let stack = Stack::from_env().ok()?;
    match explain::life(&stack, payment_id).await {
        Ok(life) => Some(format!("The first offender of {name}:\n\n{life}")),
        Err(error) => Some(format!("The first offender of {name}: {payment_id} ({error:#}).")),
    }
}
