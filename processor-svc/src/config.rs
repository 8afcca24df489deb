//! Configuration of processor-svc, read once before any port is bound.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use saga::consumer;
use saga::http::{Operators, Tls};
use saga::process::{millis, seconds};
use saga::telemetry::LogFormat;

use crate::backoff::Backoff;
use crate::breaker::Limits;
use crate::http::WebhookSecrets;
use crate::shares;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Charges authorized payments at the gateway")]
pub struct Config {
    /// Address of the public listener: /health, and the webhooks of the gateway.
    #[arg(long, env)]
    pub listen_addr: SocketAddr,
    /// Address of the admin listener: /ready, /metrics.
    #[arg(long, env)]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    /// The processor database, as the role processor_svc.
    #[arg(long, env, hide_env_values = true, value_parser = url::<postgres_tls::Connection>)]
    pub database_url: String,
    /// Maximum number of database connections.
    #[arg(long, env, default_value_t = 6)]
    pub pool_size: usize,
    /// RabbitMQ, e.g. amqp://user:password@host:5672/%2f, or several of its nodes with commas between:
    /// amqp://user:password@one:5672,two:5672/%2f
    #[arg(long, env, hide_env_values = true, value_parser = brokers::rabbitmq::url)]
    pub amqp_url: String,
    /// The queue of work messages.
    #[arg(long, env, default_value = saga::contract::PAYMENT_QUEUE)]
    pub queue: String,
    /// Messages RabbitMQ hands out before they are acknowledged.
    #[arg(long, env, default_value_t = 500)]
    pub prefetch: u16,
    /// Milliseconds from the stop signal until the service stops: the edge needs them to see that /ready fails.
    #[arg(long, env, default_value_t = 1500)]
    pub drain_ms: u64,
    /// Kafka, which carries the requests to cancel.
    #[command(flatten)]
    pub consumer: consumer::Settings,
    /// Redis, which caches ended charges. Only latency depends on it.
    #[arg(long, env, hide_env_values = true, value_parser = url::<RedisUrl>)]
    pub redis_url: String,
    /// Seconds that an ended charge stays in Redis.
    #[arg(long, env, default_value = "600", value_parser = seconds)]
    pub redis_ttl_s: Duration,
    /// URL of the gateway, e.g. http://gateway:8080
    #[arg(long, env, value_parser = url::<reqwest::Url>)]
    pub gateway_url: String,
    /// Whether the gateway charges the same key only once. If not, no charge is ever sent twice.
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    pub gateway_idempotent: bool,
    /// The secret that signs the webhooks of the gateway (`whsec_…`). Without it there are no webhooks. Several, with commas between, all
    /// hold: for as long as it is being changed.
    #[arg(long, env, hide_env_values = true)]
    pub webhook_secret: Option<WebhookSecrets>,
    /// Maximum number of concurrent calls of new charges.
    #[arg(long, env, default_value_t = 512)]
    pub calls_max: usize,
    /// Maximum number of concurrent inquiries and repeated calls, beside those.
    #[arg(long, env, default_value_t = 128)]
    pub inquiries_max: usize,
    /// Percent of either that one service may use while more than three quarters are in use.
    #[arg(long, env, default_value_t = 25, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub service_share: u8,
    /// Percent of either that one user may use while more than half are in use.
    #[arg(long, env, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub user_share: u8,
    /// Faults of the gateway in a row (never declines) after which no more calls are made for a service.
    #[arg(long, env, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub breaker_faults: u32,
    /// Milliseconds until probes are sent after that.
    #[arg(long, env, default_value = "3000", value_parser = millis)]
    pub breaker_pause_ms: Duration,
    /// Number of probes, all of which must be answered before calls are made again.
    #[arg(long, env, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub breaker_probes: u32,
    /// Milliseconds to connect to the gateway.
    #[arg(long, env, default_value = "1000", value_parser = millis)]
    pub connect_ms: Duration,
    /// Milliseconds that a whole call may take. After that its outcome is unknown.
    #[arg(long, env, default_value = "10000", value_parser = millis)]
    pub call_ms: Duration,
    /// Milliseconds after the longest call until others take an attempt over.
    #[arg(long, env, default_value = "20000", value_parser = millis)]
    pub lease_grace_ms: Duration,
    /// The gateway's promise: after so many milliseconds an inquiry finds a charge that was made.
    #[arg(long, env, default_value = "5000", value_parser = millis)]
    pub visibility_ms: Duration,
    /// Milliseconds until the first inquiry about an unknown outcome; doubled after each inquiry.
    #[arg(long, env, default_value = "1000", value_parser = millis)]
    pub inquiry_ms: Duration,
    #[arg(long, env, default_value = "300000", value_parser = millis)]
    pub inquiry_most_ms: Duration,
    /// Milliseconds until a call that could not be sent is tried again; doubled after each try.
    #[arg(long, env, default_value = "1000", value_parser = millis)]
    pub resend_ms: Duration,
    #[arg(long, env, default_value = "30000", value_parser = millis)]
    pub resend_most_ms: Duration,
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Config {
    /// How long an attempt belongs to the process that took it. It is longer than a call, so that a working process never
    /// loses an attempt.
    pub fn lease(&self) -> Duration {
        self.call_ms + self.lease_grace_ms
    }

    /// The shares of this many permits.
    pub fn shares(&self, permits: usize) -> shares::Limits {
        shares::Limits::new(permits, self.service_share.into(), self.user_share.into())
    }

    pub fn breaker(&self) -> Limits {
        Limits { faults: self.breaker_faults, pause: self.breaker_pause_ms, probes: self.breaker_probes }
    }

    pub fn inquiries(&self) -> Backoff {
        Backoff { min: self.inquiry_ms, max: self.inquiry_most_ms }
    }

    pub fn resends(&self) -> Backoff {
        Backoff { min: self.resend_ms, max: self.resend_most_ms }
    }
}

/// Redis has no type that parses without connecting.
struct RedisUrl;

impl FromStr for RedisUrl {
    type Err = redis::RedisError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        redis::Client::open(text).map(|_| RedisUrl)
    }
}

fn url<T: FromStr>(text: &str) -> Result<String, String>
where
    T::Err: std::fmt::Display,
{
    text.parse::<T>().map(|_| text.to_owned()).map_err(|why| format!("{why:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<Config, String> {
        let good = [
            "processor-svc",
            "--listen-addr=127.0.0.1:1",
            "--admin-addr=127.0.0.1:2",
            "--database-url=postgresql://processor_svc@127.0.0.1:3/processor",
            "--amqp-url=amqp://127.0.0.1:4/%2f",
            "--redis-url=redis://127.0.0.1:5",
            "--gateway-url=http://127.0.0.1:6",
            "--kafka-brokers=127.0.0.1:7",
        ];
        let args = good.iter().filter(|arg| {
            let name = arg.split('=').next().unwrap_or_default();
            !extra.iter().any(|e| e.split('=').next() == Some(name))
        });
        Config::try_parse_from(args.chain(extra)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_hold_and_a_lease_outlives_a_call() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.queue, "PaymentInitiated");
        assert_eq!(config.lease(), Duration::from_secs(30));
        assert!(parse(&["--call-ms=60000"]).unwrap().lease() > Duration::from_secs(60));
    }

    #[test]
    fn a_bad_value_is_named() {
        for bad in [
            "--listen-addr=x",
            "--database-url=nonsense",
            "--amqp-url=http://x",
            "--redis-url=x",
            "--gateway-url=x",
            "--call-ms=0",
            "--lease-grace-ms=-1",
            "--breaker-faults=0",
            "--webhook-secret=whsec_?",
            "--gateway-idempotent=perhaps",
            "--breaker-probes=0",
            "--prefetch=70000",
        ] {
            let error = parse(&[bad]).err().unwrap();
            assert!(error.contains(bad.split('=').next().unwrap()), "{bad}: {error}");
        }
    }
}
