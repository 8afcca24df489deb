//! Where events go: Kafka, RabbitMQ, and what is under way to them.

pub(crate) mod ack_waiter;
pub(crate) mod acks;
pub(crate) mod batch_size;
pub(crate) mod emit;
pub(crate) mod kafka;
pub(crate) mod polled;
pub(crate) mod producers;
pub(crate) mod rabbit;
pub(crate) mod stall;
pub(crate) mod topics;
