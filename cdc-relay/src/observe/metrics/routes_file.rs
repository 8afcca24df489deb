//! The series of the routes file.

use anyhow::Result;
use prometheus::{Gauge, IntGauge, Opts, Registry};

use super::maker::kept;

#[derive(Clone)]
pub struct RoutesFileSeries {
    /// 1 while the file has changed and is not applied, or not all of it.
    pub refused: IntGauge,
    /// When the routes that the sources run by were read.
    pub applied_at: Gauge,
}

impl RoutesFileSeries {
    pub(super) fn make(registry: &Registry) -> Result<RoutesFileSeries> {
        let opts = |name: &str, help: &str| Opts::new(format!("cdc_relay_routes_file_{name}"), help);
        let refused = "1 while the routes file has changed and is not applied, or not all of it; else 0.";
        let applied = "Unix time at which the routes that the sources run by were read.";
        Ok(RoutesFileSeries {
            refused: kept(registry, IntGauge::with_opts(opts("refused", refused))?)?,
            applied_at: kept(registry, Gauge::with_opts(opts("applied_timestamp_seconds", applied))?)?,
        })
    }
}
