//! Shows an operator how the relay is: metrics, `/ready`, the state of each source, the lag of its slot.

pub(crate) mod http;
pub(crate) mod lag;
pub(crate) mod metrics;
pub(crate) mod overview;
pub(crate) mod slot_trend;
pub(crate) mod status;
