//! Where events go: Kafka, RabbitMQ, and what is under way to them.

#[cfg(feature = "sinks")]
pub(crate) mod ack_waiter;
#[cfg(feature = "sinks")]
pub(crate) mod acks;
pub(crate) mod batch_size;
#[cfg(feature = "sinks")]
pub(crate) mod emit;
#[cfg(feature = "sinks")]
pub(crate) mod kafka;
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
