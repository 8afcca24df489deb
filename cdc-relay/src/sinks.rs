//! Where events go: Kafka, RabbitMQ, and what is under way to them.

#[cfg(feature = "sinks")]
pub(crate) mod acks;
#[cfg(feature = "sinks")]
pub(crate) mod emit;
#[cfg(feature = "sinks")]
pub(crate) mod flight;
#[cfg(feature = "sinks")]
pub(crate) mod kafka;
pub(crate) mod load;
#[cfg(feature = "sinks")]
pub(crate) mod polled;
#[cfg(feature = "sinks")]
pub(crate) mod producers;
#[cfg(feature = "sinks")]
pub(crate) mod rabbit;
#[cfg(feature = "sinks")]
pub(crate) mod stall;
#[cfg(feature = "sinks")]
pub(crate) mod topics;
