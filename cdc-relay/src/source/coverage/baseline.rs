//! Takes the first coverage of a publication, which later ones are compared with.
//!
//! * The contract is checked after the query. It refuses every loss before the query, and a later loss differs from the
//!   baseline.

use anyhow::{Result, bail};

use super::{Coverage, query};
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::contract::Contract;

/// Returns the coverage in the session's snapshot.
///
/// # Errors
/// A `Refusal` if the contract does not hold.
pub fn baseline(session: &mut Session, routes: &Routes, source: &Source) -> Result<Coverage> {
    let coverage = query::coverage(session, source)?;
    Contract { routes, source }.check(session)?;
    if let Some(table) = coverage.lacks(source) {
        bail!(
            "{table} was added to publication {} during the check; check again",
            source.publication.get_ref()
        );
    }
    Ok(coverage)
}
