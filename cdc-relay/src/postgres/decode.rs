//! Decodes the bytes of the stream to rows.

pub mod pgoutput;
pub mod relation;
pub mod row_builder;
