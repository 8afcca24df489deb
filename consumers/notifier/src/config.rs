//! Configuration of the notifier, read once before any port is bound.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser};
use ipnet::IpNet;
use lettre::message::Mailbox;
use lettre::{AsyncSmtpTransport, Tokio1Executor};
use saga::consumer;
use saga::http::{Operators, Tls};
use saga::process::seconds;
use saga::telemetry::LogFormat;
use warp::http::Uri;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Notifies users and app backends of ended payments, by e-mail and webhook")]
pub struct Config {
    /// Address of the admin listener: contacts, endpoints, replay, /ready, /metrics.
    #[arg(long, env)]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    /// The notifier database, as the role notifier.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: String,
    /// Maximum number of database connections.
    #[arg(long, env, default_value_t = 4)]
    pub pool_size: usize,
    #[command(flatten)]
    pub consumer: consumer::Settings,
    /// The SMTP server, e.g. smtps://user:password@mail:465 or smtp://mail:587?tls=required. Without it e-mails wait.
    #[arg(long, env, hide_env_values = true, value_parser = smtp_url)]
    pub smtp_url: Option<String>,
    /// The sender of e-mails.
    #[arg(long, env, default_value = "Payments <payments@localhost>")]
    pub mail_from: Mailbox,
    /// Networks that webhooks may be sent to besides public addresses, without TLS too: 127.0.0.0/8,10.1.0.0/16
    #[arg(long, env, value_delimiter = ',')]
    pub webhook_allow: Vec<IpNet>,
    #[command(flatten)]
    pub limits: Limits,
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Limits of the deliveries of one instance.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Maximum number of concurrent deliveries.
    #[arg(long, env, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub deliveries_max: u16,
    /// Maximum number of them on one channel, so that an endpoint that hangs does not hold up the others.
    #[arg(long, env, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub channel_max: u16,
    /// Seconds that a webhook may take, from the look-up of the name to the answer.
    #[arg(long, env, default_value = "15", value_parser = seconds)]
    pub attempt_s: Duration,
    /// Seconds that an e-mail may take. A mail server may check it for long before it accepts it, and who does not wait
    /// sends it twice.
    #[arg(long, env, default_value = "300", value_parser = seconds)]
    pub mail_attempt_s: Duration,
    /// Seconds after the longest attempt until another instance takes it over.
    #[arg(long, env, default_value = "15", value_parser = seconds)]
    pub lease_grace_s: Duration,
    /// Seconds from each failed attempt to the next; after the last attempt a notification is given up.
    #[arg(long, env, value_delimiter = ',', value_parser = seconds,
          default_value = "5,300,1800,7200,18000,36000,50400,72000,86400")]
    pub retries_s: Vec<Duration>,
    /// Seconds of failures without a success after which an endpoint is disabled.
    #[arg(long, env, default_value = "432000", value_parser = seconds)]
    pub disable_after_s: Duration,
}

/// A password is sent over TLS, or to this machine.
fn smtp_url(text: &str) -> Result<String, String> {
    let parsed = AsyncSmtpTransport::<Tokio1Executor>::from_url(text).is_ok();
    let uri: Option<Uri> = text.parse().ok().filter(|_| parsed);
    let uri = uri.ok_or("give a URL such as smtps://user:password@mail")?;
    let has_password = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let required = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "tls=required"));
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if has_password && !is_local && !required && uri.scheme_str() != Some("smtps") {
        return Err("the password would be sent without TLS: use smtps://, or add ?tls=required".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_sent_without_tls_but_to_this_machine() {
        for good in [
            "smtps://user:password@mail:465",
            "smtp://user:password@mail:587?tls=required",
            "smtp://user:password@127.0.0.1:25",
            "smtp://user:password@localhost",
            "smtp://mail:25",
            "smtp://mail?tls=opportunistic",
        ] {
            assert_eq!(smtp_url(good), Ok(good.to_owned()));
        }
        for bad in [
            "smtp://user:password@mail",
            "smtp://user:password@mail?tls=opportunistic",
            "http://mail",
            "mail",
        ] {
            assert!(smtp_url(bad).is_err(), "{bad}");
        }
    }
}
