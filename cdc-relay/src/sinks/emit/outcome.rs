//! Says whether a row was emitted.

use crate::routes::problem::Problem;

/// Whether the routes could emit a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum EmitOutcome {
    Emitted,
    /// A route cannot emit the row.
    Failed(Problem),
}
