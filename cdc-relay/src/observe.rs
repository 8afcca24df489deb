//! What an operator sees: metrics, `/ready`, the state of each source, and how far its slot is behind.

pub(crate) mod http;
pub(crate) mod lag;
pub(crate) mod metrics;
pub(crate) mod slot_trend;
pub(crate) mod status;
