//! The connection strings of a stack's databases, with their passwords.

use anyhow::Result;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::servers::patroni;

/// What a path as the value of a URL's parameter has to spell out: everything but the unreserved characters of RFC 3986,
/// and slashes.
const RESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// The URL of a database of the stack's Postgres, or of its nodes; of the first shard where there are several.
///
/// # Errors
/// As [`Login::password`].
pub fn postgres_url(layout: &Layout, database: &str, role: Login) -> Result<String> {
    if layout.is_ha() {
        let password = role.password(layout)?;
        // Whichever of them takes writes. One that is frozen takes connections, and answers none.
        let (user, hosts) = (role.user(), patroni::addresses(layout));
        let parameters = "target_session_attrs=read-write&connect_timeout=2";
        return Ok(format!("postgres://{user}:{password}@{hosts}/{database}?{parameters}"));
    }
    postgres_url_at(layout, Port::Postgres, database, role)
}

/// The URL of a database of the one server that listens on this port.
///
/// # Errors
/// As [`Login::password`].
pub fn postgres_url_at(layout: &Layout, port: Port, database: &str, role: Login) -> Result<String> {
    let (password, port) = (role.password(layout)?, layout.port(port));
    let authority = layout.authority().display().to_string();
    let tls = match layout.is_encrypted() {
        true => {
            format!("?sslmode=verify-full&sslrootcert={}", utf8_percent_encode(&authority, RESERVED))
        }
        false => String::new(),
    };
    Ok(format!("postgres://{}:{password}@127.0.0.1:{port}/{database}{tls}", role.user()))
}
