//! Rows that cannot be emitted: their keys halt, their records are kept, and `release` lets them go on.

pub mod halts;
pub mod listing;
pub mod record;
pub mod release;
