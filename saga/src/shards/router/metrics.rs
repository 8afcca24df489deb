//! The metrics of a router.

use prometheus::{IntCounter, IntGauge, Registry};

use crate::telemetry::register;

const REFUSALS: &str = "Statements that a database refused, since it does not own a bucket at the epoch that was named; the work is \
    repeated. Worry when it grows while no bucket is moved.";
const CONTESTED: &str = "Buckets that two shards own at one epoch, when the shards were last read. Worry above 0: their users are \
    not served.";
const UNOWNED: &str = "Requests that waited five seconds for a bucket that no shard owns, and failed. Worry when it goes on growing: a move has \
    stopped with the bucket's fence up.";
const AWAY: &str = "Of several shards, those that are away: they cannot be reached, or do not answer or commit in time. Worry above 0: the users of \
    such a shard are not served.";

pub(super) struct RouterMetrics {
    pub(super) refusals: IntCounter,
    pub(super) contested: IntGauge,
    pub(super) unowned: IntCounter,
    pub(super) away: IntGauge,
}

impl RouterMetrics {
    pub(super) fn register(registry: &Registry) -> anyhow::Result<Self> {
        Ok(Self {
            refusals: register(registry, IntCounter::new("saga_ownership_refusals_total", REFUSALS))?,
            contested: register(registry, IntGauge::new("saga_contested_buckets", CONTESTED))?,
            unowned: register(registry, IntCounter::new("saga_unowned_timeouts_total", UNOWNED))?,
            away: register(registry, IntGauge::new("saga_shards_away", AWAY))?,
        })
    }
}
