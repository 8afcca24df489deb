//! Reads what the checks compare, one file a source, and judges nothing that could be judged afterwards.
//!
//! * [`rows`] and [`money`]: the three databases.
//! * [`brokers`]: Kafka and RabbitMQ; its records are collected by [`events`], and their positions by [`chain`].
//! * [`relay`]: the relay's checkpoints and slots.
//! * [`gateway`]: the gateway's export.
//! * [`search`]: the documents of the search index.
//! * [`notifications`]: the notifier's database.

pub mod brokers;
pub mod chain;
pub mod events;
pub mod gateway;
pub mod money;
pub mod notifications;
pub mod relay;
pub mod rows;
pub mod search;
