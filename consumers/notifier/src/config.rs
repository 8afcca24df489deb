//! Configuration of the notifier, read once before any port is bound.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser};
use ipnet::IpNet;
use mailer::{Mailbox, SmtpUrl};
use saga::consumer;
use saga::http::{Operators, Tls};
use saga::process::seconds;
use saga::telemetry::LogFormat;

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
    #[arg(long, env, hide_env_values = true)]
    pub smtp_url: Option<SmtpUrl>,
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
