//! The shards of a service: moves of buckets between them.
//!
//! * [`moves`]: the next step of a move, from what its two shards recorded.

pub mod moves;
