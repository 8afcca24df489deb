//! The forms that a route can give a column instead of its type's own.

use strum::{EnumString, VariantNames};

/// The form of a column in the body, as the routes file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Cast {
    /// A JSON string, whatever the type.
    Text,
    /// A JSON number; any other value cannot be emitted.
    Number,
    /// Nested JSON; any other value cannot be emitted.
    Json,
    /// A date or timestamp as milliseconds since 1970-01-01 UTC.
    EpochMs,
    /// The same in microseconds.
    EpochUs,
    /// Bytea as hexadecimal digits.
    Hex,
}
