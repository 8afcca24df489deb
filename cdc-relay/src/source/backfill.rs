//! Emits rows that do not come from the WAL.
//!
//! * `snapshot` emits the rows that existed before the slot, beside the stream.
//! * `resnapshot` emits every row again after WAL was lost.
//! * `replay` emits chosen rows once more.
//! * `current_row` completes a dead letter from its table.

#[cfg(feature = "sinks")]
pub(crate) mod current_row;
#[cfg(feature = "sinks")]
pub(crate) mod replay;
#[cfg(feature = "sinks")]
pub(crate) mod resnapshot;
pub mod rows;
#[cfg(feature = "sinks")]
pub(crate) mod snapshot;
