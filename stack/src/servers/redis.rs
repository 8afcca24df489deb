//! Redis, or Valkey, which speaks the same and is configured alike: ids of settled charges. Losing it changes latency only, so it keeps nothing on disk.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{find_program, text};
use crate::layout::{Layout, Port};
use crate::spec::Spec;

/// Whichever is installed.
pub fn program() -> Option<PathBuf> {
    ["redis-server", "valkey-server"].into_iter().find_map(find_program)
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let program = program().context("neither Redis nor Valkey is installed")?;
    let home = layout.server_dir("redis")?;
    let config = home.join("redis.conf");
    let settings = format!(
        "bind 127.0.0.1
port {}
requirepass {}
daemonize no
save \"\"
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
",
        layout.port(Port::Redis),
        layout.password()?
    );
    layout.write_for_server(&config, &settings)?;
    let argv = vec![text(&program), text(&config)];
    Ok(vec![super::spec(layout, "redis", home, argv, Port::Redis)])
}
