//! From the bytes of `pgoutput` to rows.

pub mod pgoutput;
pub mod row_builder;
