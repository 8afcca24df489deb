//! Keeps rows that cannot be emitted, and lets their keys go on.
//!
//! * A dead letter halts its key towards one destination: later rows of the key follow it, in order.
//! * The dead-letter topic is the only record of halted keys.
//! * `release` emits the dead letters in order, before any later row of the key.

pub mod halts;
mod json;
pub mod listing;
pub mod record;
pub mod release;
