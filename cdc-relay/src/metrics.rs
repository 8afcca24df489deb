//! What the relay counts. Labels are source and sink names from the routes file, so their number is bounded.

use std::sync::Arc;

use anyhow::Result;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::progress::{SINKS, Sink};

pub const SINK_NAMES: [&str; SINKS] = ["kafka", "rabbitmq"];

/// All families, in a registry of their own.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    latency: HistogramVec,
    transactions: IntCounterVec,
    rows: IntCounterVec,
    unrouted: IntCounterVec,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    resent: IntCounterVec,
    dead: IntCounterVec,
    sessions: IntCounterVec,
    halted: IntGaugeVec,
    in_flight: IntGaugeVec,
    pending: IntGaugeVec,
    behind: IntGaugeVec,
    retained: IntGaugeVec,
    safe: IntGaugeVec,
    state: IntGaugeVec,
    snapshots: Snapshots,
}

/// By source and table: as many tables as the routes file gives a snapshot.
#[derive(Clone)]
struct Snapshots {
    rows: IntCounterVec,
    passed: IntGaugeVec,
    estimate: IntGaugeVec,
    failures: IntCounterVec,
}

/// The snapshot of one table.
pub struct SnapshotMetrics {
    pub rows: IntCounter,
    pub passed: IntGauge,
    pub estimate: IntGauge,
    pub failures: IntCounter,
}

impl Metrics {
    pub fn new() -> Result<Metrics> {
        let registry = Registry::new();
        // From a quarter of a millisecond to a minute.
        let buckets = vec![
            0.000_25, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            5.0, 60.0,
        ];
        let latency = HistogramOpts::new(
            "cdc_relay_commit_to_acknowledged_seconds",
            "From the commit in Postgres to the sink's acknowledgement, per transaction; by two clocks.",
        );
        let latency = HistogramVec::new(latency.buckets(buckets), &["source", "sink"])?;
        registry.register(Box::new(latency.clone()))?;
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec> {
            kept(&registry, IntCounterVec::new(Opts::new(format!("cdc_relay_{name}"), help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec> {
            kept(&registry, IntGaugeVec::new(Opts::new(format!("cdc_relay_{name}"), help), labels)?)
        };
        let (one, two) = (&["source"][..], &["source", "sink"][..]);
        let table = &["source", "table"][..];
        let snapshots = Snapshots {
            rows: counter("snapshot_rows_total", "Rows told from a table's snapshot.", table)?,
            passed: gauge(
                "snapshot_passed_rows",
                "Rows that the snapshot has come past: told, or told by the stream in a newer state.",
                table,
            )?,
            estimate: gauge(
                "snapshot_estimated_rows",
                "Rows of the table as the planner believes; -1 if it does not know.",
                table,
            )?,
            failures: counter("snapshot_failures_total", "Chunks that could not be read.", table)?,
        };
        Ok(Metrics {
            snapshots,
            transactions: counter("transactions_total", "Transactions read from the log.", one)?,
            rows: counter("rows_total", "Rows read from the log.", one)?,
            unrouted: counter("unrouted_rows_total", "Rows that match no route.", one)?,
            messages: counter("messages_total", "Messages handed to a sink.", two)?,
            bytes: counter("bytes_total", "Bytes of keys and bodies handed to a sink.", two)?,
            resent: counter(
                "resent_messages_total",
                "Messages handed to a sink again after a failure.",
                two,
            )?,
            dead: counter("dead_letters_total", "Rows that went to the dead-letter topic.", one)?,
            sessions: counter("sessions_total", "Replication sessions begun.", one)?,
            halted: gauge("halted_keys", "Keys whose rows go to the dead-letter topic until released.", one)?,
            in_flight: gauge("in_flight_bytes", "Handed to a sink and not yet acknowledged.", two)?,
            pending: gauge("pending_transactions", "Transactions not yet acknowledged by every sink.", one)?,
            behind: gauge("behind_bytes", "Log written and not yet confirmed.", one)?,
            retained: gauge("wal_retained_bytes", "Log that the server keeps for the slot.", one)?,
            safe: gauge(
                "wal_safe_bytes",
                "Log that may be written before the slot is lost; -1 without a limit.",
                one,
            )?,
            state: gauge("state", "1 for the state the source is in.", &["source", "state"])?,
            latency,
            registry,
        })
    }

    pub fn render(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }

    /// The series of one source, looked up once.
    pub fn source(&self, name: &str) -> SourceMetrics {
        let per_sink =
            |family: &IntCounterVec| SINK_NAMES.map(|sink| family.with_label_values(&[name, sink]));
        SourceMetrics(Arc::new(Series {
            name: name.to_owned(),
            snapshots: self.snapshots.clone(),
            latency: SINK_NAMES.map(|sink| self.latency.with_label_values(&[name, sink])),
            messages: per_sink(&self.messages),
            bytes: per_sink(&self.bytes),
            resent: per_sink(&self.resent),
            in_flight: SINK_NAMES.map(|sink| self.in_flight.with_label_values(&[name, sink])),
            transactions: self.transactions.with_label_values(&[name]),
            rows: self.rows.with_label_values(&[name]),
            unrouted: self.unrouted.with_label_values(&[name]),
            dead: self.dead.with_label_values(&[name]),
            sessions: self.sessions.with_label_values(&[name]),
            halted: self.halted.with_label_values(&[name]),
            pending: self.pending.with_label_values(&[name]),
            behind: self.behind.with_label_values(&[name]),
            retained: self.retained.with_label_values(&[name]),
            safe: self.safe.with_label_values(&[name]),
            states: crate::status::NAMES.map(|state| self.state.with_label_values(&[name, state])),
        }))
    }
}

fn kept<C: Collector + Clone + 'static>(registry: &Registry, family: C) -> Result<C> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

pub struct Series {
    name: String,
    snapshots: Snapshots,
    pub latency: [Histogram; SINKS],
    pub messages: [IntCounter; SINKS],
    pub bytes: [IntCounter; SINKS],
    pub resent: [IntCounter; SINKS],
    pub in_flight: [IntGauge; SINKS],
    pub transactions: IntCounter,
    pub rows: IntCounter,
    pub unrouted: IntCounter,
    pub dead: IntCounter,
    pub sessions: IntCounter,
    pub halted: IntGauge,
    pub pending: IntGauge,
    pub behind: IntGauge,
    pub retained: IntGauge,
    pub safe: IntGauge,
    pub states: [IntGauge; crate::status::NAMES.len()],
}

/// Cheap to clone.
#[derive(Clone)]
pub struct SourceMetrics(Arc<Series>);

impl std::ops::Deref for SourceMetrics {
    type Target = Series;

    fn deref(&self) -> &Series {
        &self.0
    }
}

impl SourceMetrics {
    pub fn told(&self, sink: Sink, bytes: usize) {
        self.messages[sink as usize].inc();
        self.bytes[sink as usize].inc_by(bytes as u64);
    }

    pub fn snapshot(&self, table: &str) -> SnapshotMetrics {
        let (labels, of) = ([self.name.as_str(), table], &self.snapshots);
        SnapshotMetrics {
            rows: of.rows.with_label_values(&labels),
            passed: of.passed.with_label_values(&labels),
            estimate: of.estimate.with_label_values(&labels),
            failures: of.failures.with_label_values(&labels),
        }
    }

    pub fn resent(&self, sink: Sink, count: u64) {
        self.resent[sink as usize].inc_by(count);
    }
}
