//! Configuration of the auditor, read once before any port is bound.

use std::net::SocketAddr;
use std::time::Duration;

use brokers::Brokers;
use clap::{Args, Parser};
use saga::contract::PAYMENT_QUEUE;
use saga::http::{Operators, Tls};
use saga::telemetry::LogFormat;

// No Debug: it would print passwords.
#[derive(Clone, Parser)]
#[command(
    version,
    about = "Audits payments, movements and events when they change, and says by metrics what contradicts"
)]
pub struct Config {
    /// Address of the admin listener: /ready, /metrics.
    #[arg(long, env)]
    pub admin_addr: SocketAddr,
    #[command(flatten)]
    pub operators: Operators,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub databases: Databases,
    #[command(flatten)]
    pub kafka: Brokers,
    /// The group that keeps how far was audited. The auditor does not join it, so no other consumer may use it.
    #[arg(long, env, default_value = "auditor")]
    pub group_id: String,
    /// Prefix of every topic name, so that several systems can share one Kafka.
    #[arg(long, env, default_value = "")]
    pub topic_prefix: String,
    /// The work queue: what the processor parks of it is on a topic of its name.
    #[arg(long, env, default_value = PAYMENT_QUEUE)]
    pub queue: String,
    #[command(flatten)]
    pub schedule: Schedule,
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// The databases of the saga, each as a role that may only read.
#[derive(Args, Clone)]
pub struct Databases {
    /// The payments database, or its shards: NAME=URL of each, separated by spaces.
    #[arg(long, env, hide_env_values = true)]
    pub payments_database_url: String,
    /// The balance database, or its shards.
    #[arg(long, env, hide_env_values = true)]
    pub balance_database_url: String,
    /// The processor database, or its shards.
    #[arg(long, env, hide_env_values = true)]
    pub processor_database_url: String,
}

/// How often it looks, and how long it waits before it judges.
#[derive(Args, Clone, Copy, Debug)]
pub struct Schedule {
    /// Milliseconds from one pass to the next.
    #[arg(long, env, default_value_t = 60_000)]
    pub pass_ms: u64,
    /// Milliseconds to the next pass while something is suspected: it is read again before it is reported.
    #[arg(long, env, default_value_t = 5_000)]
    pub recheck_ms: u64,
    /// Milliseconds that a source must have gone on before an event of it counts as missing; longer than any transaction.
    #[arg(long, env, default_value_t = 60_000)]
    pub settle_ms: u64,
    /// Seconds after which a payment that has not ended counts as late.
    #[arg(long, env, default_value_t = 120)]
    pub late_s: u32,
    /// Seconds for which a payment that has not ended may hold back the group's offsets. A restart reads as much again.
    #[arg(long, env, default_value_t = 3_600)]
    pub hold_back_s: u32,
    /// Payments that are kept in memory, at some 300 bytes each. At this number it reads no more events until some are done.
    #[arg(long, env, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(100..))]
    pub pending_max: u32,
    /// Accounts of each database that each pass examines beside those that changed, so that every account has its turn.
    #[arg(long, env, default_value_t = 1_000)]
    pub accounts_per_pass: u32,
}

impl Schedule {
    pub fn pass(&self) -> Duration {
        Duration::from_millis(self.pass_ms)
    }

    pub fn recheck(&self) -> Duration {
        Duration::from_millis(self.recheck_ms).min(self.pass())
    }

    pub fn settle(&self) -> Duration {
        Duration::from_millis(self.settle_ms)
    }

    pub fn late(&self) -> Duration {
        Duration::from_secs(self.late_s.into())
    }

    pub fn hold_back(&self) -> Duration {
        Duration::from_secs(self.hold_back_s.into())
    }

    pub fn pending_max(&self) -> usize {
        usize::try_from(self.pending_max).unwrap_or(usize::MAX)
    }
}
