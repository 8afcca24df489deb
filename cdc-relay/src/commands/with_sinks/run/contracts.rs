//! Checks sources that have changed against their databases, before they are stopped.
//!
//! * A source that streams is not stopped for routes that its database refuses.
//! * A database that does not answer refuses nothing. Its source stands still anyway, and shows why once it begins again.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::checkpoint::refusal::Refusal;
use crate::commands::with_sinks::wiring;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::contract::Contract;
use crate::source::inspect;

/// How long a database may be silent. The process cannot end before the thread that asks does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks these sources of the routes. Blocks.
///
/// # Errors
/// The first refusal.
pub fn check(routes: &Routes, sources: &[String]) -> Result<()> {
    for source in sources.iter().filter_map(|name| routes.source(name)) {
        let name = source.name.get_ref();
        let Err(error) = check_source(routes, source) else { continue };
        match error.downcast::<Refusal>() {
            Ok(refusal) => bail!("source {name}: {refusal}"),
            Err(error) => {
                tracing::warn!(
                    source = name,
                    "the changed routes could not be checked in advance: {error:#}"
                );
            }
        }
    }
    Ok(())
}

fn check_source(routes: &Routes, source: &Source) -> Result<()> {
    let mut session = Session::connect_to_read(&wiring::database(source)?)?;
    session.set_silence_timeout(ANSWER_TIMEOUT)?;
    let (routes, source) = wiring::resolved_by(&mut session, routes, source)?;
    let has_slot = inspect::slot(&mut session, source.slot.get_ref())?.is_some();
    Contract { routes: &routes, source: &source }.verdict(&mut session, has_slot)?.into_result()?;
    Ok(())
}
