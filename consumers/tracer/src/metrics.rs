//! The metrics of the tracer, all in one registry.

use anyhow::Result;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use saga::consumer::ConsumerMetrics;
use saga::telemetry;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    pub traces: IntCounterVec,
    pub pending: IntGauge,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
        let consumer = ConsumerMetrics::register(&registry)?;
        let opts = Opts::new(
            "tracer_traces_total",
            "Traces by outcome: sent, or refused by the collector and dropped. Worry when any is refused: the collector and this version do not understand each other.",
        );
        let traces = telemetry::register(&registry, IntCounterVec::new(opts, &["outcome"]))?;
        let pending = IntGauge::new(
            "tracer_events_pending",
            "Events of payments whose trace is not sent yet. Worry when it keeps growing: the collector is away, or payments do not end.",
        );
        let pending = telemetry::register(&registry, pending)?;
        Ok(Self { registry, consumer, traces, pending })
    }
}
