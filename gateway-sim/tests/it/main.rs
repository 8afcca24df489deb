//! The gateway over HTTP, as its callers see it.
#![allow(clippy::unwrap_used)] // in tests; clippy.toml covers test functions, not their helpers

mod behaviour;
mod charges;
mod foreign;
mod gateway;
mod hooks;
mod voids;
