//! The parameters of a connection, from libpq's sources: the string, then the environment.
//!
//! * A string is a URL, or keyword/value pairs like `host=h dbname='my db'`.
//! * A parameter that could change nothing here is ignored (`IGNORED`).
//! * A parameter that somebody may rely on, and that is not supported, is refused (`REFUSED`), never ignored.
//! * An empty value counts as absent.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::nearest::hint;

/// Values by name. The last value of a name counts.
pub type Parameters = BTreeMap<String, String>;

/// The supported parameters, each with its environment variable.
const SUPPORTED: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
];

/// The parameters without effect here: names and forms that the relay sets itself, and libpq's own machinery.
const IGNORED: &[&str] = &[
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "replication",
    "gsslib",
    "gssdelegation",
    "krbsrvname",
    "sslcompression",
    "sslsni",
    "sslkeylogfile",
    "min_protocol_version",
    "max_protocol_version",
];

/// The unsupported parameters: name, environment variable, values that change nothing, and what to do instead.
const REFUSED: &[(&str, &str, &[&str], &str)] = &[
    ("service", "PGSERVICE", &[], "write the parameters of the service into the string"),
    ("servicefile", "", &[], "write the parameters of the service into the string"),
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"], "use TLS (`sslmode`)"),
    (
        "require_auth",
        "PGREQUIREAUTH",
        &[],
        "let the server ask for the method (pg_hba.conf), or use channel_binding=require",
    ),
    ("requirepeer", "PGREQUIREPEER", &[], "connect to a folder that only the server may write to"),
    ("requiressl", "PGREQUIRESSL", &["0"], "say sslmode=require"),
    ("sslcrl", "PGSSLCRL", &[], "take the authority out of sslrootcert"),
    ("sslcrldir", "PGSSLCRLDIR", &[], "take the authority out of sslrootcert"),
    ("sslcertmode", "PGSSLCERTMODE", &["allow"], "give or leave out sslcert and sslkey"),
    ("sslpassword", "", &[], "give sslkey a file without a password"),
    (
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "set it on the server",
    ),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", &["TLSv1.3"], "set it on the server"),
    ("scram_client_key", "", &[], "give the password"),
    ("scram_server_key", "", &[], "give the password"),
    ("oauth_issuer", "", &[], "use a password or a certificate"),
    ("oauth_client_id", "", &[], "use a password or a certificate"),
    ("oauth_client_secret", "", &[], "use a password or a certificate"),
    ("oauth_scope", "", &[], "use a password or a certificate"),
];

/// Reads a connection string, and fills in the environment's values.
///
/// # Errors
/// When the text is no connection string, or asks for something unsupported.
pub fn read(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Parameters> {
    let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let mut parameters = match rest {
        Some(rest) => url(rest)?,
        None => keyword_values(text)?,
    };
    for name in parameters.keys() {
        known(name)?;
    }
    let variables = SUPPORTED.iter().map(|(name, variable)| (name, variable));
    let refused = REFUSED.iter().map(|(name, variable, ..)| (name, variable));
    for (name, variable) in variables.chain(refused).filter(|(_, variable)| !variable.is_empty()) {
        if !parameters.contains_key(*name)
            && let Some(value) = env(variable)
        {
            parameters.insert((*name).to_owned(), value);
        }
    }
    parameters.retain(|_, value| !value.is_empty());
    for (name, variable, harmless, instead) in REFUSED {
        if let Some(value) = parameters.remove(*name).filter(|value| !harmless.contains(&value.as_str())) {
            let variable = if variable.is_empty() { String::new() } else { format!(" (or {variable})") };
            bail!("{name}={value}{variable} is not supported here: {instead}");
        }
    }
    IGNORED.iter().for_each(|name| drop(parameters.remove(*name)));
    Ok(parameters)
}

fn known(name: &str) -> Result<()> {
    let all = || SUPPORTED.iter().map(|(name, _)| *name).chain(REFUSED.iter().map(|(name, ..)| *name));
    let all = || all().chain(IGNORED.iter().copied());
    ensure!(all().any(|known| known == name), "there is no parameter `{name}`{}", hint(name, all()));
    Ok(())
}

/// `[user[:password]@][host[:port],…][/database][?name=value&…]`.
fn url(text: &str) -> Result<Parameters> {
    let mut parameters = Parameters::new();
    let (login, rest) = login(text);
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, rest)| (user, Some(rest)));
        parameters.insert("user".to_owned(), decoded(user)?);
        if let Some(password) = password {
            parameters.insert("password".to_owned(), decoded(password)?);
        }
    }
    let (address, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
    let (hosts, database) =
        address.split_once('/').map_or((address, ""), |(hosts, database)| (hosts, database));
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
        let (name, port) = split_port(host)?;
        names.push(decoded(name)?);
        ports.push(port);
    }
    parameters.insert("host".to_owned(), names.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.insert("port".to_owned(), ports.join(","));
    }
    parameters.insert("dbname".to_owned(), decoded(database)?);
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').with_context(|| format!("`{pair}` has no `=`"))?;
        match (decoded(name)?.as_str(), decoded(value)?) {
            // JDBC's form, which libpq accepts too.
            ("ssl", value) if value == "true" => {
                parameters.insert("sslmode".to_owned(), "require".to_owned());
            }
            (name, value) => {
                parameters.insert(name.to_owned(), value);
            }
        }
    }
    parameters.retain(|_, value| !value.is_empty());
    Ok(parameters)
}

/// The login before the first `@`, and the text behind it. As in libpq a `/` ends the login, unless the text before it is no
/// address: then the `/` belongs to the password.
fn login(text: &str) -> (Option<&str>, &str) {
    let Some((login, rest)) = text.split_once('@') else { return (None, text) };
    let address = login.split(['/', '?']).next().unwrap_or_default();
    let is_address = address.len() < login.len() && split_port(address).is_ok_and(|(_, port)| is_port(port));
    if is_address { (None, text) } else { (Some(login), rest) }
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|digit| digit.is_ascii_digit())
}

/// `host:port`, `[address]:port`, or only the first.
fn split_port(host: &str) -> Result<(&str, &str)> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) =
            rest.split_once(']').with_context(|| format!("`{host}` has a `[` without `]`"))?;
        return Ok((address, rest.strip_prefix(':').unwrap_or_default()));
    }
    Ok(host.rsplit_once(':').unwrap_or((host, "")))
}

fn decoded(text: &str) -> Result<String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    Ok(decoded.context("a part of the URL is not UTF-8")?.into_owned())
}

/// `name = value` pairs. Single quotes enclose a value with spaces; a backslash escapes the next character.
fn keyword_values(text: &str) -> Result<Parameters> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').with_context(|| {
            format!(
                "`{rest}` is neither a URL (postgres://user@host/database) nor pairs like host=h dbname=d"
            )
        })?;
        let name = name.trim_end();
        ensure!(!name.is_empty() && !name.contains(char::is_whitespace), "`{name}` has no `=` after it");
        let (value, after) =
            value(after.trim_start()).with_context(|| format!("the value of {name} does not end"))?;
        parameters.insert(name.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// The first value, and the text behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |text| (true, text));
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted => return Some((value, chars.as_str())),
            Some(c) if !quoted && c.is_whitespace() => return Some((value, before)),
            None => return (!quoted).then_some((value, "")),
            Some(c) => value.push(c),
        }
    }
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
