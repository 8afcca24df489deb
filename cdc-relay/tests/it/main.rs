//! The relay against real servers. Each test has a database, a slot and topics of its own, runs the program as a
//! process, and is named by the loss it prevents.
//!
//! `cargo stack test` starts the servers and sets POSTGRES_ADMIN_URL, KAFKA_BROKERS and AMQP_URL.

mod brokers;
mod dead_letters;
mod faults;
mod kafka;
mod observed;
mod proxy;
mod rabbit;
mod refusals;
mod rig;
mod standby;
mod telling;
