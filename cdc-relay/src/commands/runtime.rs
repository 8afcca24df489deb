//! Runs the asynchronous part of a command to its end.

use std::future::Future;

use anyhow::{Context, Result};

/// # Errors
/// Those of the work, and when no runtime can be started.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(work)
}
