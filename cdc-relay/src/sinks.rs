//! Emits events to Kafka and RabbitMQ, and collects their acknowledgements.
//!
//! * [`emit`] renders rows, and decides between emitting and dead-lettering.
//! * [`kafka`] produces, [`rabbit`] publishes; neither ever gives a message up.
//! * [`acks`] counts the bytes in flight, [`ack_waiter`] waits for them.

pub(crate) mod ack_waiter;
pub(crate) mod acks;
pub(crate) mod batch_size;
pub(crate) mod emit;
pub(crate) mod event;
pub(crate) mod kafka;
pub(crate) mod polled_producer;
pub(crate) mod producers;
pub(crate) mod rabbit;
pub(crate) mod stall;
pub(crate) mod topics;
