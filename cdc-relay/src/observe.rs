//! What an operator sees: metrics, `/ready`, the state of each source, and how far its slot is behind.

#[cfg(feature = "sinks")]
pub(crate) mod http;
#[cfg(feature = "sinks")]
pub(crate) mod lag;
#[cfg(feature = "sinks")]
pub(crate) mod metrics;
#[cfg(feature = "sinks")]
pub(crate) mod slot_trend;
#[cfg(feature = "sinks")]
pub(crate) mod status;
