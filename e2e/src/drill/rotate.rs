//! Every login of the stack gets another secret under load.
//!
//! * No request fails, payments go on settling, and nobody is paged.
//! * Each secret that was replaced opened its server before and does not afterwards; the new one does.
//! * `keys` has the secrets, and how each is tried.

use anyhow::{Result, ensure};
use coroctl::client::Client;
use coroctl::stack::Stack;
use futures_util::future::join_all;
use stack::environment;
use stack::layout::Layout;

use super::harness::Harness;
use super::keys::{self, Key};
use super::{pages, upgrade};

/// # Errors
/// When a script fails, a secret opens what it should not or does not open what it should, payments stand still for too long,
/// or somebody is paged.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let layout = Layout::from_env()?;
    let old = keys::all(&layout)?;
    ensure_all(&old, true, "does not open its server, so the drill would show nothing").await?;
    harness.view.line(&format!("{} secrets open their servers", old.len()));
    let quiet = pages::Quiet::begin(harness).await?;
    let subscribers = upgrade::subscribers()?;
    harness.run_runbook(&[("SUBSCRIBERS", &subscribers)]).await?;

    // The addresses that this process was started with have the old ones.
    let variables = environment::variables(&layout)?;
    harness.stack = Stack::read(|name| Ok(variables.get(name).cloned()))?;
    harness.client = Client::new(&harness.stack.through_edge())?;
    let new = keys::all(&layout)?;
    for (old, new) in old.iter().zip(&new) {
        ensure!(old.secret != new.secret, "{} is as before", old.name);
    }
    ensure_all(&old, false, "still opens its server").await?;
    ensure_all(&new, true, "does not open its server").await?;
    harness.note(format!("{} secrets were replaced; each was tried before and after", new.len()));
    quiet.end(harness).await
}

/// Tries all keys at the same time.
async fn ensure_all(keys: &[Key], opens: bool, otherwise: &str) -> Result<()> {
    let tried = join_all(keys.iter().map(Key::opens)).await;
    for (key, opened) in keys.iter().zip(tried) {
        ensure!(opened? == opens, "{} {otherwise}", key.name);
    }
    Ok(())
}
