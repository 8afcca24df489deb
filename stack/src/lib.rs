//! `cargo stack`: the servers and services of Coro as supervised processes on one machine.
//!
//! One command (`cli`) talks to one detached supervisor per stack over a Unix socket (`control`). The command
//! knows what a Postgres or a payments-svc is; the supervisor knows only processes.

pub mod cli;

pub mod certificates;
pub mod control;
pub mod database_url;
pub mod environment;
pub mod extras;
pub mod keycloak;
pub mod layout;
pub mod login;
pub mod probe;
pub mod process;
pub mod program;
pub mod secrets;
pub mod servers;
pub mod services;
pub mod shards;
pub mod spec;
pub mod state;

mod backoff;
mod bench;
mod beside;
mod cache;
mod check;
mod compose;
mod debezium;
mod distribute;
mod down;
mod exec;
mod install;
mod k6;
mod kubernetes;
mod launch;
mod link;
mod logs;
mod maven;
mod output;
mod release;
mod rotate;
mod scale;
mod status;
mod supervisor;
mod up;
mod workspace;
