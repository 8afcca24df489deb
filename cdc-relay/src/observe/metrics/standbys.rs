//! The series of transactions that wait for synchronous standbys.

use anyhow::Result;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::{LATENCIES, Maker};

pub struct StandbySeries {
    /// 1: everything of this timeline was flushed by synchronous standbys before it was emitted.
    pub kept: IntGauge,
    pub held: IntCounter,
    pub held_since: Gauge,
    pub hold: Histogram,
    pub flushed: Gauge,
    pub queries: IntCounter,
}

impl StandbySeries {
    pub(super) fn make(make: &Maker<'_>) -> Result<StandbySeries> {
        let kept = "1 if synchronous standbys flushed everything of this timeline before it was emitted, 0 otherwise.";
        let held = "Transactions that waited for synchronous standbys.";
        let since = "Unix time since which a transaction waits for synchronous standbys; NaN without one.";
        let hold = "Time that a transaction waited for synchronous standbys, per transaction that waited.";
        let flushed =
            "Position that enough synchronous standbys have flushed, in bytes from the beginning of the WAL.";
        Ok(StandbySeries {
            kept: make.integer(None, "synchronous", kept)?,
            held: make.counter("held_transactions_total", held)?,
            held_since: make.gauge(None, "held_since_timestamp_seconds", since, f64::NAN)?,
            hold: make.histogram(None, "hold_seconds", hold, &LATENCIES)?,
            flushed: make.gauge(None, "standby_position_bytes", flushed, f64::NAN)?,
            queries: make.counter("standby_queries_total", "Queries for the standbys' positions.")?,
        })
    }
}
