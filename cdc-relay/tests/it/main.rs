//! Tests the relay against real servers.
//!
//! * Each test has a database, a slot and topics of its own, and runs the program as a process.
//! * Each test is named by the loss that it prevents.
//! * `cargo stack test` starts the servers and sets POSTGRES_ADMIN_URL, KAFKA_BROKERS, KAFKA_ADMIN_CONFIG and AMQP_URL.

mod agree;
mod alters;
mod authorized;
mod baseline;
mod brokers;
mod bytes;
mod commands;
mod compacted;
mod connection;
mod continuity;
mod dead_letters;
mod deletes;
mod emitting;
mod ends;
mod failover;
mod faults;
mod fixes;
mod harm;
mod harness;
mod heals;
mod idle;
mod kafka;
mod keys;
mod leaving;
mod limits;
mod literals;
mod load;
mod losses;
mod names;
mod observed;
mod oracle;
mod outages;
mod own_key;
mod patient;
mod proxy;
mod publications;
mod published;
mod rabbit;
mod refusals;
mod rekeyed;
mod release;
mod replay;
mod resnapshot;
mod servers;
mod settings;
mod shards;
mod snapshot;
mod standby;
mod strict;
mod succession;
mod synchronous;
mod tls;
mod types;
mod undecodable;
mod volume;
