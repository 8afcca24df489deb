//! processor-svc against real servers. Each test has a database, queue and gateway of its own.
//!
//! Needs `POSTGRES_ADMIN_URL` (a superuser); the tests of `jobs` and `restores` also `AMQP_URL` and `REDIS_URL`, those of
//! `events` and `recovery` `KAFKA_BROKERS`.
#![allow(clippy::unwrap_used)] // in tests; clippy.toml covers test functions, not their helpers

mod bulkheads;
mod cancel;
mod ends;
mod events;
mod flow;
mod harness;
mod jobs;
mod operators;
mod queue;
mod recovery;
mod repairs;
mod restores;
mod shards;
mod store;
mod strangers;
mod sweep;
mod topic;
mod webhooks;
