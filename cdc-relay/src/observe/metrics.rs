//! Counts what the relay does; `docs/metrics.md` says what each series means and when to worry.
//!
//! * Labels are names from the routes file and from lists in this crate, so the number of series is fixed for a source.
//! * All series but a snapshot's exist from the start, so that a first error is a rise and not a new series.
//! * The series of a source begin and end with it.
//! * An unknown value is NaN, which no comparison matches.
//! * A row costs only additions to atomics.

mod maker;
mod registries;
mod routes_file;
mod standbys;

use std::sync::Arc;

use anyhow::Result;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder,
};

use crate::checkpoint::progress::{SINKS, Sink};
use maker::{Maker, kept};
use prometheus::proto::MetricFamily;
use registries::Registries;

pub use self::routes_file::RoutesFileSeries;
pub use self::standbys::StandbySeries;

pub const SINK_NAMES: [&str; SINKS] = ["kafka", "rabbitmq"];
/// The states of a source, by the index that [`status`](crate::observe::status) gives them.
pub const STATE_NAMES: [&str; 4] = ["connecting", "standby", "streaming", "refused"];
/// `wal_status` of `pg_replication_slots`, and `missing` for a slot that does not exist.
pub const SLOT_STATUSES: [&str; 5] = ["reserved", "extended", "unreserved", "lost", "missing"];
/// Seconds: close together around a healthy relay, and on to the minutes of an outage.
const LATENCIES: [f64; 22] = [
    0.000_25, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// All families. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registries: Arc<Registries>,
    pub routes_file: RoutesFileSeries,
}

/// By table, for tables with a snapshot. A table's series appear when its snapshot begins.
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
        let registries = Registries::new();
        let registry = &registries.process;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let build = Opts::new("cdc_relay_build_info", "Always 1; the labels name the versions.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("librdkafka", rdkafka::util::get_rdkafka_version().1);
        kept(registry, IntGauge::with_opts(build)?)?.set(1);
        let routes_file = RoutesFileSeries::make(registry)?;
        Ok(Metrics { registries: Arc::new(registries), routes_file })
    }

    pub fn render(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.gather(), &mut out)?;
        Ok(out)
    }

    /// The series of one source.
    ///
    /// # Errors
    /// When this source has series.
    pub fn source(&self, name: &str) -> Result<SourceMetrics> {
        let registry = self.registries.add(name)?;
        Ok(SourceMetrics(Arc::new(Series::make(&Maker { registry: &registry, source: name })?)))
    }

    /// Removes the series of a source that has ended.
    pub fn remove(&self, name: &str) {
        self.registries.remove(name);
    }

    fn gather(&self) -> Vec<MetricFamily> {
        self.registries.gather()
    }
}

/// Everything about one source.
pub struct Series {
    pub name: String,
    pub slot: SlotSeries,
    pub sinks: SinkSeries,
    pub stream: StreamSeries,
    pub standbys: StandbySeries,
    snapshots: Snapshots,
}

/// The messages in flight; arrays are by sink.
pub struct SinkSeries {
    pub latency: [Histogram; SINKS],
    pub messages: [IntCounter; SINKS],
    pub bytes: [IntCounter; SINKS],
    pub resent: [IntCounter; SINKS],
    pub in_flight: [IntGauge; SINKS],
    pub in_flight_limit: IntGauge,
    pub backpressure: [Counter; SINKS],
    pub acknowledged_at: [Gauge; SINKS],
    pub errors: [IntCounter; SINKS],
    pub pending: IntGauge,
    pub oldest_pending: Gauge,
}

/// The replication stream and its sessions.
pub struct StreamSeries {
    /// By state.
    pub states: [IntGauge; STATE_NAMES.len()],
    pub sessions: IntCounter,
    pub failures: IntCounter,
    pub reads: IntCounter,
    pub received_bytes: IntCounter,
    pub transactions: IntCounter,
    pub rows: IntCounter,
    pub unrouted: IntCounter,
    pub left_out: IntCounter,
    pub dead_letters: IntCounter,
    pub halted_keys: IntGauge,
    pub status_updates: IntCounter,
    pub checkpoint_writes: IntCounter,
}

/// The status of the slot, as the server reports it.
pub struct SlotSeries {
    /// By status.
    pub status: [IntGauge; SLOT_STATUSES.len()],
    pub lag: Gauge,
    pub retained: Gauge,
    pub safe: Gauge,
    pub invalidation: Gauge,
    pub written: Gauge,
    pub confirmed: Gauge,
    pub progressed_at: Gauge,
    pub watched_at: Gauge,
    pub watch_failures: IntCounter,
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
    pub fn emitted(&self, sink: Sink, bytes: usize) {
        self.sinks.messages[sink as usize].inc();
        self.sinks.bytes[sink as usize].inc_by(bytes as u64);
    }

    /// Nothing is in flight any more.
    pub fn clear_in_flight(&self) {
        self.sinks.in_flight.iter().for_each(|gauge| gauge.set(0));
        self.sinks.pending.set(0);
        self.sinks.oldest_pending.set(f64::NAN);
    }

    pub fn snapshot(&self, table: &str) -> SnapshotMetrics {
        let (labels, of) = ([table], &self.snapshots);
        SnapshotMetrics {
            rows: of.rows.with_label_values(&labels),
            passed: of.passed.with_label_values(&labels),
            estimate: of.estimate.with_label_values(&labels),
            failures: of.failures.with_label_values(&labels),
        }
    }

    pub fn resent(&self, sink: Sink, count: u64) {
        self.sinks.resent[sink as usize].inc_by(count);
    }
}

impl Series {
    fn make(make: &Maker<'_>) -> Result<Series> {
        Ok(Series {
            name: make.source.to_owned(),
            slot: SlotSeries::make(make)?,
            sinks: SinkSeries::make(make)?,
            stream: StreamSeries::make(make)?,
            standbys: StandbySeries::make(make)?,
            snapshots: Snapshots::make(make)?,
        })
    }
}

impl SinkSeries {
    fn make(make: &Maker<'_>) -> Result<SinkSeries> {
        let full = "Time in which the source did not read because the sink had its limit of bytes in flight.";
        let last = "Unix time of the sink's last acknowledgement; 0 before the first.";
        let oldest =
            "Unix time of the commit of the oldest transaction not yet acknowledged; NaN without one.";
        let latency =
            "Time from the commit in Postgres to the sink's acknowledgement, per transaction, by two clocks.";
        let limit = "Configured limit of in-flight bytes per sink.";
        let pending = "Transactions not yet acknowledged by every sink.";
        let counters = |name, help| make.each("sink", SINK_NAMES, |sink| make.counter_of(sink, name, help));
        Ok(SinkSeries {
            latency: make.each("sink", SINK_NAMES, |sink| {
                make.histogram(sink, "commit_to_acknowledged_seconds", latency, &LATENCIES)
            })?,
            messages: counters("messages_total", "Messages handed to the sink.")?,
            bytes: counters("bytes_total", "Bytes of the keys and bodies of those messages.")?,
            resent: counters("resent_messages_total", "Messages handed over again after a failure.")?,
            in_flight: make.each("sink", SINK_NAMES, |sink| {
                make.integer(sink, "in_flight_bytes", "Bytes handed to the sink and not yet acknowledged.")
            })?,
            in_flight_limit: make.integer(None, "in_flight_limit_bytes", limit)?,
            backpressure: make
                .each("sink", SINK_NAMES, |sink| make.seconds(sink, "backpressure_seconds_total", full))?,
            acknowledged_at: make.each("sink", SINK_NAMES, |sink| {
                make.gauge(sink, "last_acknowledged_timestamp_seconds", last, 0.0)
            })?,
            errors: counters("sink_errors_total", "Errors that the sink's client reported.")?,
            pending: make.integer(None, "pending_transactions", pending)?,
            oldest_pending: make.gauge(None, "oldest_pending_timestamp_seconds", oldest, f64::NAN)?,
        })
    }
}

impl StreamSeries {
    fn make(make: &Maker<'_>) -> Result<StreamSeries> {
        let state = "1 for the present state of the source, 0 for the others.";
        let dead_letters = "Rows that went to the dead-letter topic.";
        let halted_keys = "Keys whose later rows go to the dead-letter topic.";
        let left_out = "Transactions of another server that the relay left out, since the server did not (before PostgreSQL 16).";
        Ok(StreamSeries {
            states: make.each("state", STATE_NAMES, |name| make.integer(name, "state", state))?,
            sessions: make.counter("sessions_total", "Replication sessions begun.")?,
            failures: make.counter("failures_total", "Attempts and sessions that ended with an error.")?,
            reads: make.counter("reads_total", "Reads from the replication connection.")?,
            received_bytes: make.counter("received_bytes_total", "Bytes read from that connection.")?,
            transactions: make.counter("transactions_total", "Transactions read from the WAL.")?,
            rows: make.counter("rows_total", "Rows read from the WAL.")?,
            unrouted: make.counter("unrouted_rows_total", "Rows that match no route.")?,
            left_out: make.counter("left_out_transactions_total", left_out)?,
            dead_letters: make.counter("dead_letters_total", dead_letters)?,
            halted_keys: make.integer(None, "halted_keys", halted_keys)?,
            status_updates: make.counter("status_updates_total", "Status updates sent to the server.")?,
            checkpoint_writes: make
                .counter("checkpoint_writes_total", "Records written to the state topic.")?,
        })
    }
}

impl Snapshots {
    fn make(make: &Maker<'_>) -> Result<Snapshots> {
        let opts = |name: &str, help: &str| {
            Opts::new(format!("cdc_relay_snapshot_{name}"), help).const_label("source", make.source)
        };
        let counter = |name, help| kept(make.registry, IntCounterVec::new(opts(name, help), &["table"])?);
        let gauge = |name, help| kept(make.registry, IntGaugeVec::new(opts(name, help), &["table"])?);
        let passed =
            "Rows that the snapshot has processed: emitted by it, or by the stream in a newer state.";
        let estimate = "The planner's estimate of the table's rows; -1 if there is none.";
        Ok(Snapshots {
            rows: counter("rows_total", "Rows emitted from a table's snapshot.")?,
            passed: gauge("passed_rows", passed)?,
            estimate: gauge("estimated_rows", estimate)?,
            failures: counter("failures_total", "Chunks that could not be read.")?,
        })
    }
}

impl SlotSeries {
    fn make(make: &Maker<'_>) -> Result<SlotSeries> {
        let unknown = |name, help| make.gauge(None, name, help, f64::NAN);
        let status = "1 for the slot's wal_status, 0 for the others.";
        let safe = "WAL that may be written before the server can invalidate the slot; +Inf without a limit.";
        let invalidation = "Time until the server can invalidate the slot if nothing is confirmed from now on and the \
                            rate of WAL stays the same; +Inf without a limit.";
        let progress = "Unix time at which the slot last advanced, or had nothing to advance over.";
        let watched = "Unix time of the server's last answer about the slot; 0 before the first.";
        let failed = "Failed queries for the slot's status.";
        Ok(SlotSeries {
            status: make.each("status", SLOT_STATUSES, |label| make.integer(label, "slot_status", status))?,
            lag: unknown("lag_bytes", "WAL written and not yet confirmed.")?,
            retained: unknown("wal_retained_bytes", "WAL that the server retains for the slot.")?,
            safe: unknown("wal_safe_bytes", safe)?,
            invalidation: unknown("slot_invalidation_seconds", invalidation)?,
            written: unknown("wal_position_bytes", "End of the server's WAL, in bytes from its beginning.")?,
            confirmed: unknown(
                "confirmed_position_bytes",
                "The slot's confirmed position, in bytes from the beginning of the WAL.",
            )?,
            progressed_at: unknown("last_progress_timestamp_seconds", progress)?,
            watched_at: make.gauge(None, "slot_watched_timestamp_seconds", watched, 0.0)?,
            watch_failures: make.counter("slot_watch_failures_total", failed)?,
        })
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
