//! Shares out the buckets of a stack with several shards (`coroctl shard distribute`), before its first service starts.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::layout::{Layout, write_private};
use crate::login::Login;
use crate::shards::{self, DATABASES};
use crate::workspace;

/// Stands behind the number of shards once their buckets are shared out.
const DISTRIBUTED: &str = "distributed";

/// Gives each shard its buckets, once. What was moved later stays where it is.
///
/// # Errors
/// When a shard does not answer, or has rows.
pub fn run(layout: &Layout) -> Result<String> {
    let count = layout.shard_count();
    let file = layout.shards_file();
    let kept = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    if kept.split_whitespace().nth(1) == Some(DISTRIBUTED) {
        return Ok(format!("{count}, whose buckets are shared out already"));
    }
    for database in DATABASES {
        let coroctl = workspace::binary(layout, "coroctl");
        let mut command = workspace::command(layout, &coroctl.display().to_string());
        command.args(["shard", "distribute"]);
        command.env("SHARDS_ADMIN", shards::list(layout, database, Login::Superuser)?);
        let output = command.output().with_context(|| format!("cannot run {}", coroctl.display()))?;
        let reason = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the buckets of {database} cannot be shared out: {}", reason.trim());
    }
    write_private(&file, &format!("{count} {DISTRIBUTED}"))?;
    Ok(format!("{count}, with their buckets"))
}
