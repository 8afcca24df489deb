//! Redis, or Valkey, which speaks the same and is configured alike: ids of settled charges. Losing it changes latency only, so it keeps nothing on disk.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::text;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::program::find_program;
use crate::spec::Spec;

/// Whichever is installed.
pub fn program() -> Option<PathBuf> {
    ["redis-server", "valkey-server"].into_iter().find_map(find_program)
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let program = program().context("neither Redis nor Valkey is installed")?;
    let home = layout.server_dir("redis")?;
    let config = home.join("redis.conf");
    let port = layout.port(Port::Redis);
    let listener = if layout.is_encrypted() {
        certificates::give(layout, "redis", &home)?;
        let file = |name: &str| text(&home.join(name));
        format!(
            "port 0
tls-port {port}
tls-cert-file {}
tls-key-file {}
tls-ca-cert-file {}
tls-auth-clients no",
            file("tls.crt"),
            file("tls.key"),
            file("ca.pem")
        )
    } else {
        format!("port {port}")
    };
    layout.write_for_server(&config, &settings(layout, &listener)?)?;
    let argv = vec![text(&program), text(&config)];
    Ok(vec![super::spec(layout, "redis", home, argv, Port::Redis)])
}

/// Everyone who signs in.
pub const USERS: [Login; 3] = [Login::CacheAdministrator, Login::CacheProcessor, Login::CacheMonitor];

pub fn settings(layout: &Layout, listener: &str) -> Result<String> {
    let users: String = USERS
        .into_iter()
        .map(|login| Ok(format!("user {} on >{} {}\n", login.user(), login.password(layout)?, rights(login))))
        .collect::<Result<_>>()?;
    Ok(format!(
        "bind 127.0.0.1
{listener}
user default off
{users}daemonize no
save \"\"
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
"
    ))
}

/// The rights of a user, in the words of Redis' access control lists.
fn rights(login: Login) -> &'static str {
    match login {
        // The keys that processor-svc names, and the two commands that it asks and writes them by.
        Login::CacheProcessor => "~processor/* -@all +mget +setex",
        // Statistics, and no key.
        Login::CacheMonitor => "-@all +info",
        Login::CacheAdministrator => "~* +@all",
        // A login of another server.
        _ => "-@all",
    }
}
