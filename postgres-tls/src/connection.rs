//! A URL with TLS parameters, for `tokio-postgres`, which would refuse most of them.

use std::str::FromStr;

use anyhow::{Context, Result};
use percent_encoding::percent_decode_str;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Mode, Parameters, TlsParameters, client};

/// The names of the TLS parameters.
const NAMES: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

/// What carries a connection that is encrypted.
pub type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// A database, and how its server is verified. Shows no password.
#[derive(Clone)]
pub struct Connection {
    pub config: Config,
    pub tls: MakeRustlsConnect,
}

impl FromStr for Connection {
    type Err = anyhow::Error;

    /// # Errors
    /// When the text is no URL of Postgres, its TLS parameters contradict each other, or a certificate cannot be read.
    fn from_str(url: &str) -> Result<Self> {
        let (rest, mut parameters) = split(url)?;
        let mut config: Config = rest.parse().context("the database URL is malformed")?;
        // Of the form `host=h sslmode=disable`, where `tokio-postgres` reads the mode.
        match config.get_ssl_mode() {
            SslMode::Disable => parameters.insert("sslmode".to_owned(), "disable".to_owned()),
            SslMode::Require => parameters.insert("sslmode".to_owned(), "require".to_owned()),
            _ => None,
        };
        let parameters = TlsParameters::take(&mut parameters)?;
        let mode = parameters.mode()?;
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        Ok(Self { config, tls: MakeRustlsConnect::new(client(mode, &parameters)?) })
    }
}

/// The URL without its TLS parameters, and these.
fn split(url: &str) -> Result<(String, Parameters)> {
    // The login may contain question marks.
    let address = url.rfind('@').map_or(0, |at| at + 1);
    let Some((before, query)) = url[address..].split_once('?') else {
        return Ok((url.to_owned(), Parameters::new()));
    };
    let (mut others, mut found) = (Vec::new(), Parameters::new());
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8().context("a parameter's name is not UTF-8")?;
        if NAMES.contains(&&*name) {
            let value = percent_decode_str(value).decode_utf8();
            let value = value.with_context(|| format!("the value of {name} is not UTF-8"))?;
            if !value.is_empty() {
                found.insert(name.into_owned(), value.into_owned());
            }
        } else {
            others.push(pair);
        }
    }
    let mark = if others.is_empty() { "" } else { "?" };
    Ok((format!("{}{before}{mark}{}", &url[..address], others.join("&")), found))
}

#[cfg(test)]
mod tests {
    // In a test an unwrap is an assertion.
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mode(url: &str) -> Result<SslMode, String> {
        let connection = url.parse::<Connection>().map_err(|error| format!("{error:#}"))?;
        Ok(connection.config.get_ssl_mode())
    }

    #[test]
    fn tls_parameters_are_taken_and_the_others_kept() {
        for (url, rest, names) in [
            ("postgres://u:p@h/d", "postgres://u:p@h/d", vec![]),
            ("postgres://u:p@h/d?sslmode=require", "postgres://u:p@h/d", vec!["sslmode"]),
            (
                "postgres://u:p?w@h/d?ssl%6Dode=verify-full&connect_timeout=3&sslrootcert=%2Fca",
                "postgres://u:p?w@h/d?connect_timeout=3",
                vec!["sslmode", "sslrootcert"],
            ),
            ("postgres://h/d?sslmode=", "postgres://h/d", vec![]),
            ("host=h sslmode=require", "host=h sslmode=require", vec![]),
        ] {
            let (left, found) = split(url).unwrap();
            assert_eq!((left.as_str(), found.keys().map(String::as_str).collect::<Vec<_>>()), (rest, names));
        }
        assert_eq!(split("postgres://h/d?sslrootcert=%2Fca").unwrap().1["sslrootcert"], "/ca");
    }

    #[test]
    fn a_connection_is_as_encrypted_as_its_url_asks() {
        assert_eq!(mode("postgres://u@h/d"), Ok(SslMode::Prefer));
        assert_eq!(mode("postgres://u@h/d?sslmode=disable"), Ok(SslMode::Disable));
        assert_eq!(mode("host=h sslmode=disable"), Ok(SslMode::Disable));
        assert_eq!(mode("postgres://u@h/d?sslmode=require"), Ok(SslMode::Require));
        assert_eq!(mode("host=h sslmode=require"), Ok(SslMode::Require));
        for (bad, why) in [
            ("postgres://u@h/d?sslmode=perhaps", "perhaps"),
            ("postgres://u@h/d?sslmode=verify-ca", "needs sslrootcert"),
            ("postgres://u@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem", "/nowhere.pem"),
            ("postgres://u@h/d?sslcert=/nowhere.pem", "go together"),
            ("nonsense", "malformed"),
        ] {
            let error = mode(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
