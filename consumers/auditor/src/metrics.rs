//! The metrics of the auditor, all in one registry. Every label value is there from the start, so that a first increase is seen.

use anyhow::Result;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use saga::telemetry;
use strum::VariantArray;

use crate::checks::{Check, WaitsFor};

/// The things that are counted when they are examined.
pub const KINDS: [&str; 4] = ["record", "payment", "movement", "account"];

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub violations: IntCounterVec,
    pub suspicions: IntGauge,
    pub examined: IntCounterVec,
    /// By result: examined, empty or failed.
    pub passes: IntCounterVec,
    pub pass_seconds: Histogram,
    pub last_examined_at: Gauge,
    pub pending: IntGauge,
    pub late: IntGaugeVec,
    pub behind: IntGauge,
    pub let_go: IntCounter,
    pub looked_until: Gauge,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let counters = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        let pass = HistogramOpts::new("auditor_pass_seconds", "Seconds of a pass that examined something.")
            .buckets(vec![0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]);
        let metrics = Self {
            registry: telemetry::registry()?,
            violations: counters(
                "auditor_violations_total",
                "Contradictions that were confirmed, by the check of docs/AUDIT.md. Worry at the first one: the log names it.",
                "check",
            )?,
            suspicions: IntGauge::new(
                "auditor_suspicions",
                "Contradictions that were seen and are read again before they are reported.",
            )?,
            examined: counters(
                "auditor_examined_total",
                "What was examined, by kind: record, payment, movement or account. Worry when payments stand still while some are accepted.",
                "kind",
            )?,
            passes: counters(
                "auditor_passes_total",
                "Passes, by result: examined, empty (no payment had changed) or failed. Worry when `failed` grows: a database or Kafka is away.",
                "result",
            )?,
            pass_seconds: Histogram::with_opts(pass)?,
            last_examined_at: Gauge::new(
                "auditor_last_examined_timestamp_seconds",
                "When a pass last examined a payment, in seconds since 1970; 0 before the first.",
            )?,
            pending: IntGauge::new(
                "auditor_pending_payments",
                "Payments in memory: not ended, or not yet compared with the topics. Worry near PENDING_MAX: it reads no more events there.",
            )?,
            late: IntGaugeVec::new(
                Opts::new(
                    "auditor_late_payments",
                    "Payments that have not ended within LATE_S, by what they wait for: gateway (their charge is undecided) or saga (a step of ours).",
                ),
                &["waits_for"],
            )?,
            behind: IntGauge::new(
                "auditor_behind_records",
                "Records on the topics that are not read. Worry when it grows.",
            )?,
            let_go: IntCounter::new(
                "auditor_let_go_total",
                "Payments whose rows were examined and whose events were not awaited, since PENDING_MAX was reached.",
            )?,
            looked_until: Gauge::new(
                "auditor_looked_until_timestamp_seconds",
                "The time up to which the rows of payments were compared with the topics, in seconds since 1970.",
            )?,
        };
        metrics.add_to_registry()?;
        Ok(metrics)
    }

    fn add_to_registry(&self) -> Result<()> {
        for check in Check::VARIANTS {
            self.violations.with_label_values(&[check.name()]);
        }
        for kind in KINDS {
            self.examined.with_label_values(&[kind]);
        }
        for result in ["examined", "empty", "failed"] {
            self.passes.with_label_values(&[result]);
        }
        for waits_for in WaitsFor::VARIANTS {
            self.late.with_label_values(&[waits_for.name()]);
        }
        let registry = &self.registry;
        for vector in [&self.violations, &self.examined, &self.passes] {
            registry.register(Box::new(vector.clone()))?;
        }
        for gauge in [&self.suspicions, &self.pending, &self.behind] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for gauge in [&self.last_examined_at, &self.looked_until] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(self.late.clone()))?;
        registry.register(Box::new(self.pass_seconds.clone()))?;
        registry.register(Box::new(self.let_go.clone()))?;
        Ok(())
    }
}
