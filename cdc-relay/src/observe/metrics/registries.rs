//! Holds a registry for the process, and one for each source, whose series go with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use prometheus::Registry;
use prometheus::proto::MetricFamily;

pub struct Registries {
    pub process: Registry,
    sources: Mutex<BTreeMap<String, Registry>>,
}

impl Registries {
    pub fn new() -> Registries {
        Registries { process: Registry::new(), sources: Mutex::default() }
    }

    /// The registry of a source that has none yet.
    ///
    /// # Errors
    /// When it has one: a second set of series would split the counts.
    pub fn add(&self, source: &str) -> Result<Registry> {
        let mut sources = self.sources();
        ensure!(!sources.contains_key(source), "source {source} has series already");
        let registry = Registry::new();
        sources.insert(source.to_owned(), registry.clone());
        Ok(registry)
    }

    pub fn remove(&self, source: &str) {
        self.sources().remove(source);
    }

    /// All families, each once, with the series of all sources.
    pub fn gather(&self) -> Vec<MetricFamily> {
        let mut families = BTreeMap::<String, MetricFamily>::new();
        let of_sources: Vec<Registry> = self.sources().values().cloned().collect();
        for mut family in of_sources.iter().chain([&self.process]).flat_map(Registry::gather) {
            match families.get_mut(family.name()) {
                Some(known) => known.mut_metric().extend(family.take_metric()),
                None => drop(families.insert(family.name().to_owned(), family)),
            }
        }
        families.into_values().collect()
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<String, Registry>> {
        // The guarded value is valid after any panic.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
