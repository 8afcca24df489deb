//! The parts of one source that its worker, its clients and its watchers share.

use std::sync::Arc;
use std::time::Duration;

use brokers::Brokers;
use tokio::runtime::Handle;

use crate::observe::metrics::SourceMetrics;
use crate::observe::status::Status;
use crate::postgres::connection_url::Database;
use crate::routes::{Routes, Source};
use crate::sinks::acks::Acks;
use crate::sinks::rabbit::Rabbit;
use crate::source::succession::Membership;

/// One source: its routes, its database, its sinks, and where it reports.
#[derive(Clone)]
pub struct SourceContext {
    pub routes: Arc<Routes>,
    pub source: Arc<Source>,
    pub database: Database,
    pub brokers: Brokers,
    pub rabbit: Option<Arc<Rabbit>>,
    pub acks: Arc<Acks>,
    pub metrics: SourceMetrics,
    pub status: Status,
    pub runtime: Handle,
    /// This process, towards other relays of the source.
    pub membership: Membership,
}

impl SourceContext {
    /// Waits for the time, or until the relay stops.
    pub fn pause(&self, time: Duration) {
        self.acks.pause(time);
    }
}
