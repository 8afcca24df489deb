//! Connects to Postgres, and builds URLs and names of databases.

use anyhow::{Context, Result, bail, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use postgres_tls::Connection;
use tokio_postgres::Client;
use tokio_postgres::config::Host;

const USABLE: &str =
    "the Postgres URL cannot be used; give one such as postgres://user:password@host:5432/postgres";

/// Connects, and drives the connection in a task of its own until the client is dropped.
///
/// # Errors
/// When the URL is malformed or the server refuses.
pub async fn connect(url: &str) -> Result<Client> {
    let describe = || format!("cannot connect to {}", without_password(url));
    let Connection { config, tls } = url.parse::<Connection>().with_context(describe)?;
    let (client, connection) = config.connect(tls).await.with_context(describe)?;
    tokio::spawn(async move {
        // Every pending query reports the same error.
        let _closed = connection.await;
    });
    Ok(client)
}

/// The URL of `database` on the same server, for `role`, with the same parameters.
///
/// # Errors
/// When `admin_url` names no TCP host.
pub fn database_url(admin_url: &str, database: &str, role: &str, password: &str) -> Result<String> {
    let Connection { config, .. } = admin_url.parse::<Connection>().context(USABLE)?;
    let host = |(index, host): (usize, &Host)| {
        let Host::Tcp(name) = host else {
            bail!("the Postgres URL names no TCP host; sockets are not supported, so give a host")
        };
        let ports = config.get_ports();
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        Ok(format!("{name}:{port}"))
    };
    let hosts = config.get_hosts().iter().enumerate().map(host).collect::<Result<Vec<_>>>()?.join(",");
    ensure!(!hosts.is_empty(), "the Postgres URL names no host");
    let (role, password, database) = (encode(role), encode(password), encode(database));
    Ok(format!("postgres://{role}:{password}@{hosts}/{database}{}", parameters(admin_url)))
}

/// The same login, another database.
///
/// # Errors
/// When the URL names no TCP host or no user.
pub fn with_database(admin_url: &str, database: &str) -> Result<String> {
    let Connection { config, .. } = admin_url.parse::<Connection>().context(USABLE)?;
    let user = config.get_user().context("the Postgres URL names no user; add the superuser")?;
    let password = String::from_utf8(config.get_password().unwrap_or_default().to_vec())?;
    database_url(admin_url, database, user, &password)
}

/// Takes the advisory lock of a purpose, held until the session ends.
pub(crate) async fn lock(client: &Client, purpose: &str) -> Result<()> {
    client
        .execute("select pg_advisory_lock(hashtext('coro ' || $1))", &[&purpose])
        .await
        .with_context(|| format!("cannot lock {purpose}"))?;
    Ok(())
}

/// Quotes a database name. A name with other characters than a-z, 0-9 and _ is refused.
pub(crate) fn quote_identifier(name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
        bail!("{name:?} is no database name: use 1 to 63 characters of a-z, 0-9 and _");
    }
    Ok(format!("\"{name}\""))
}

/// The parameters of a URL, with their question mark.
fn parameters(url: &str) -> &str {
    // The login may contain question marks.
    let address = url.rfind('@').unwrap_or(0);
    url[address..].find('?').map_or("", |at| &url[address + at..])
}

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…@{}", &url[..scheme], &url[at + 1..]),
        _ => "Postgres".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_the_server_and_escape_the_rest() {
        let url = database_url(
            "postgres://postgres:x@127.0.0.1:21001/postgres",
            "balance",
            "coro_checker",
            "a/b@c",
        )
        .unwrap();
        assert_eq!(url, "postgres://coro_checker:a%2Fb%40c@127.0.0.1:21001/balance");
        let same = with_database("postgres://postgres:s%40t@127.0.0.1:21001/postgres", "payments").unwrap();
        assert_eq!(same, "postgres://postgres:s%40t@127.0.0.1:21001/payments");
        let encrypted =
            with_database("postgres://postgres:x?y@h:1/postgres?sslmode=require", "balance").unwrap();
        assert_eq!(encrypted, "postgres://postgres:x%3Fy@h:1/balance?sslmode=require");
        let several =
            with_database("postgres://p:x@h:1,i:2,j/postgres?target_session_attrs=read-write", "fraud");
        assert_eq!(several.unwrap(), "postgres://p:x@h:1,i:2,j:5432/fraud?target_session_attrs=read-write");
    }

    #[test]
    fn names_that_need_quoting_are_refused() {
        assert_eq!(quote_identifier("test_1").unwrap(), "\"test_1\"");
        for bad in ["", "a b", "a\"b", "A", "a-b"] {
            assert!(quote_identifier(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_password("postgres://u:secret@h:1/d"), "postgres://…@h:1/d");
    }
}
