//! Configuration of the tracer, read once before any port is bound.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use saga::consumer::{self, Subscription};
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use saga::http::{Operators, Tls};
use saga::telemetry::LogFormat;

use crate::SERVICE;
use crate::saga::Sampler;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(version, about = "Makes a trace of each payment from its events, and sends it by OTLP over HTTP")]
pub struct Config {
    /// Address of the admin listener: /ready, /metrics.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:9650")]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    /// The collector, without the path `/v1/traces`.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "http://127.0.0.1:4318")]
    pub endpoint: String,
    /// The share of payments that is traced, by the id of their trace: 1 is all, 0.01 one in a hundred. A payment whose client
    /// has sampled it out is never traced.
    #[arg(long, env = "TRACE_SAMPLE_RATIO", default_value_t = Sampler::ALL)]
    pub sampler: Sampler,
    /// Events that are older than this when they are read are not traced, in seconds: the topics keep every event for ever, and
    /// a new group begins at the first one. 0 traces them all.
    #[arg(long, env = "TRACE_AGE_MAX_SECONDS", default_value_t = 3600)]
    pub age_max_seconds: u32,
    #[command(flatten)]
    pub consumer: consumer::Settings,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Config {
    pub fn subscription(&self) -> Subscription {
        self.consumer.subscription(SERVICE, &[PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC])
    }

    /// `None`: events of any age are traced.
    pub fn age_max(&self) -> Option<Duration> {
        (self.age_max_seconds > 0).then(|| Duration::from_secs(self.age_max_seconds.into()))
    }
}
