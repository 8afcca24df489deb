//! Makes series and registers them.

use anyhow::{Result, anyhow};
use prometheus::core::Collector;
use prometheus::{Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry};

/// A label besides `source`, and its value.
pub type Label<'a> = Option<(&'a str, &'a str)>;

pub fn kept<C: Collector + Clone + 'static>(registry: &Registry, series: C) -> Result<C> {
    registry.register(Box::new(series.clone()))?;
    Ok(series)
}

/// For the series of one source.
pub struct Maker<'a> {
    pub registry: &'a Registry,
    pub source: &'a str,
}

impl Maker<'_> {
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.counter_of(None, name, help)
    }

    pub fn counter_of(&self, label: Label<'_>, name: &str, help: &str) -> Result<IntCounter> {
        kept(self.registry, IntCounter::with_opts(self.opts(name, help, label))?)
    }

    pub fn seconds(&self, label: Label<'_>, name: &str, help: &str) -> Result<Counter> {
        kept(self.registry, Counter::with_opts(self.opts(name, help, label))?)
    }

    pub fn integer(&self, label: Label<'_>, name: &str, help: &str) -> Result<IntGauge> {
        kept(self.registry, IntGauge::with_opts(self.opts(name, help, label))?)
    }

    pub fn gauge(&self, label: Label<'_>, name: &str, help: &str, initial: f64) -> Result<Gauge> {
        let gauge = kept(self.registry, Gauge::with_opts(self.opts(name, help, label))?)?;
        gauge.set(initial);
        Ok(gauge)
    }

    pub fn histogram(&self, label: Label<'_>, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::from(self.opts(name, help, label)).buckets(buckets.to_vec());
        kept(self.registry, Histogram::with_opts(opts)?)
    }

    /// One series for each value of a label.
    pub fn each<T, const N: usize>(
        &self,
        label: &str,
        values: [&str; N],
        make: impl Fn(Label<'_>) -> Result<T>,
    ) -> Result<[T; N]> {
        let made: Vec<T> = values.iter().map(|value| make(Some((label, value)))).collect::<Result<_>>()?;
        made.try_into().map_err(|_| anyhow!("not a series for each {label} of {}", self.source))
    }

    fn opts(&self, name: &str, help: &str, label: Label<'_>) -> Opts {
        let opts = Opts::new(format!("cdc_relay_{name}"), help).const_label("source", self.source);
        label.into_iter().fold(opts, |opts, (label, value)| opts.const_label(label, value))
    }
}
