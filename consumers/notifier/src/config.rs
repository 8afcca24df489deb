//! Configuration of the notifier, read once before any port is bound.

use std::net::SocketAddr;
use std::time::Duration;

use brokers::Brokers;
use clap::{Args, Parser};
use ipnet::IpNet;
use lettre::message::Mailbox;
use lettre::{AsyncSmtpTransport, Tokio1Executor};
use saga::http::{Operators, Tls};
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
    pub kafka: Brokers,
    /// The consumer group; all instances share it.
    #[arg(long, env, default_value = "notifier")]
    pub group_id: String,
    /// A stable name of this instance, unique in the group: its restart then causes no rebalance.
    #[arg(long, env)]
    pub group_instance_id: Option<String>,
    /// Prefix of every topic name, so that several systems can share one Kafka.
    #[arg(long, env, default_value = "")]
    pub topic_prefix: String,
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
    /// Seconds that an attempt may take, from the look-up of the name to the answer.
    #[arg(long, env, default_value = "15", value_parser = seconds)]
    pub attempt_s: Duration,
    /// Seconds after the longest attempt until another instance takes it over.
    #[arg(long, env, default_value = "15", value_parser = seconds)]
    pub lease_grace_s: Duration,
    /// Seconds from each failed attempt to the next; after the last attempt a notification is given up.
    #[arg(long, env, value_delimiter = ',', value_parser = seconds, default_value = "5,300,1800,7200,18000,36000,50400,72000,86400")]
    pub retries_s: Vec<Duration>,
    /// Seconds of failures without a success after which an endpoint is disabled.
    #[arg(long, env, default_value = "432000", value_parser = seconds)]
    pub disable_after_s: Duration,
}

impl Limits {
    /// How long an attempt belongs to the instance that claimed it. It is longer than the attempt.
    pub fn lease(&self) -> Duration {
        self.attempt_s + self.lease_grace_s
    }
}

fn smtp_url(text: &str) -> Result<String, String> {
    let parsed = AsyncSmtpTransport::<Tokio1Executor>::from_url(text);
    parsed.map(|_| text.to_owned()).map_err(|_| "give a URL such as smtps://user:password@mail".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.map(Duration::from_secs).ok_or_else(|| "give a whole number, at least 1".to_owned())
}
