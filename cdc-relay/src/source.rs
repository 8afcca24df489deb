//! One source from its start to its end: the contract with its database, its sessions, the stream, and the backfill.

pub mod backfill;
#[cfg(feature = "sinks")]
pub(crate) mod clients;
#[cfg(feature = "sinks")]
pub(crate) mod context;
pub mod contract;
pub mod coverage;
#[cfg(feature = "sinks")]
pub(crate) mod guard;
pub mod inspect;
pub mod published;
#[cfg(feature = "sinks")]
pub(crate) mod read_scheduler;
pub(crate) mod slots;
#[cfg(feature = "sinks")]
pub(crate) mod stream;
#[cfg(feature = "sinks")]
pub(crate) mod stuck;
#[cfg(feature = "sinks")]
pub(crate) mod succession;
#[cfg(feature = "sinks")]
pub(crate) mod synchronous;
#[cfg(feature = "sinks")]
pub(crate) mod watch;
#[cfg(feature = "sinks")]
pub(crate) mod worker;
