//! Rows that are not read from WAL: beside the stream, instead of lost WAL, or once more.

#[cfg(feature = "sinks")]
pub(crate) mod current_row;
#[cfg(feature = "sinks")]
pub(crate) mod replay;
#[cfg(feature = "sinks")]
pub(crate) mod resnapshot;
pub mod rows;
#[cfg(feature = "sinks")]
pub(crate) mod snapshot;
