//! Every login of the stack gets another secret under load.
//!
//! * No request fails, payments go on settling, and nobody is paged.
//! * Each secret that was replaced opened its server before and does not afterwards; the new one does.
//! * In between each new one opens its server too. The old one does where two hold at a time, and nowhere else; and meanwhile no other
//!   rotation begins, which would end them early.
//! * `keys` has the secrets, and how each is tried.

use anyhow::{Context, Result, ensure};
use coroctl::client::Client;
use futures_util::future::join_all;
use stack::layout::Layout;

use super::harness::Harness;
use super::keys::{self, Key};
use super::{pages, script, upgrade};

/// # Errors
/// When a script fails, a secret opens what it should not or does not open what it should, payments stand still for too long,
/// or somebody is paged.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let layout = Layout::from_env()?;
    let old = keys::all(&layout)?;
    ensure_all(&old, |_| true, "before").await?;
    harness.view.line(&format!("{} secrets open their servers", old.len()));
    let quiet = pages::Quiet::begin(harness).await?;
    let (subscribers, services) = (upgrade::subscribers()?, upgrade::services()?);
    let section = harness.section()?;
    let [begin, rest @ ..] = section.acts.as_slice() else {
        anyhow::bail!("{} has no script", section.heading)
    };
    harness.run_script(&section, begin, &[]).await?;
    let new = keys::all(&layout)?;
    for (old, new) in old.iter().zip(&new) {
        ensure!(old.secret != new.secret, "{} is as before", old.name);
    }
    ensure_all(&old, Key::holds_until_the_end, "once it was replaced").await?;
    ensure_all(&new, |_| true, "once it was made").await?;
    let early = script::cargo_stack(&["rotate"]).await.err().context("a second rotation began early")?;
    ensure!(format!("{early:#}").contains("rotate --end"), "a second rotation: {early:#}");
    ensure_all(&new, |_| true, "after a second rotation was refused").await?;
    for text in rest {
        harness.run_script(&section, text, &[("SUBSCRIBERS", &subscribers), ("SERVICES", &services)]).await?;
    }

    // The addresses that the drill began with have the old ones.
    harness.stack = super::present()?;
    harness.client = Client::new(&harness.stack.through_edge())?;
    ensure_all(&old, |_| false, "at the end").await?;
    ensure_all(&keys::all(&layout)?, |_| true, "at the end").await?;
    harness.note(format!("{} secrets were replaced; each was tried before, meanwhile and after", new.len()));
    quiet.end(harness).await
}

/// Tries all keys at the same time.
async fn ensure_all(keys: &[Key], opens: impl Fn(&Key) -> bool, when: &str) -> Result<()> {
    let tried = join_all(keys.iter().map(Key::opens)).await;
    for (key, opened) in keys.iter().zip(tried) {
        let (opened, expected) = (opened?, opens(key));
        let what = if opened { "opens" } else { "does not open" };
        ensure!(opened == expected, "{} {what} its server {when}", key.name);
    }
    Ok(())
}
