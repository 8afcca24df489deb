//! The metrics of gateway-sim.
//!
//! * Labels are fixed texts.

use prometheus::{Encoder, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use crate::ledger::Counts;

#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Calls by answer.
    pub calls: IntCounterVec,
    /// Webhooks by outcome.
    pub hooks: IntCounterVec,
    charges: IntGauge,
    declines: IntGauge,
    voids: IntGauge,
    surplus: IntGauge,
}

impl Metrics {
    pub fn new() -> anyhow::Result<Metrics> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> anyhow::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let calls =
            Opts::new("gateway_sim_calls_total", "Calls of POST /charges, inquiries and voids, by answer.");
        let calls = IntCounterVec::new(calls, &["answer"])?;
        registry.register(Box::new(calls.clone()))?;
        let hooks = Opts::new(
            "gateway_sim_webhooks_total",
            "Webhooks, by outcome: delivered, undelivered or dropped.",
        );
        let hooks = IntCounterVec::new(hooks, &["outcome"])?;
        registry.register(Box::new(hooks.clone()))?;
        Ok(Metrics {
            calls,
            hooks,
            charges: gauge("gateway_sim_charges", "Charges in the ledger.")?,
            declines: gauge("gateway_sim_declines", "Declines in the ledger.")?,
            voids: gauge("gateway_sim_voids", "Voided charges in the ledger.")?,
            surplus: gauge(
                "gateway_sim_surplus_charges",
                "Standing charges beyond the first of their reference. Worry above 0: a customer was charged twice.",
            )?,
            registry,
        })
    }

    /// The exposition text.
    pub fn render(&self, counts: Counts) -> anyhow::Result<Vec<u8>> {
        self.charges.set(counts.charges as i64);
        self.declines.set(counts.declines as i64);
        self.voids.set(counts.voids as i64);
        self.surplus.set(counts.surplus as i64);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
