//! The coverage that later ones are compared with, where none is known.
//!
//! It has all that the routes need: the contract is checked after the look. What is changed before the look the contract
//! refuses; what is changed after it differs from the baseline.

use anyhow::{Result, bail};

use super::{Coverage, query};
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::contract;

/// As the session sees it now. The error is a `Refusal` if the contract does not hold.
pub fn baseline(session: &mut Session, routes: &Routes, source: &Source) -> Result<Coverage> {
    let coverage = query::coverage(session, source)?;
    contract::check(session, routes, source)??;
    if let Some(table) = coverage.lacks(source) {
        bail!(
            "{table} was put into publication {} a moment ago: it is looked at again",
            source.publication.get_ref()
        );
    }
    Ok(coverage)
}
