//! Keeps what the admin listener shows: the sources that run, and whether they run by the routes file as it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::observe::metrics::RoutesFileSeries;
use crate::observe::status::Status;
use crate::postgres::lsn::PgTime;

/// Whether the sources run by the routes file as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoutesFile {
    pub current: bool,
    /// Why the file as it is cannot be used. The sources run by what it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Overview {
    shown: Arc<Mutex<Shown>>,
    series: RoutesFileSeries,
}

struct Shown {
    sources: Vec<Status>,
    routes_file: RoutesFile,
}

impl Overview {
    pub fn new(series: RoutesFileSeries) -> Overview {
        let routes_file = RoutesFile { current: true, problem: None };
        Overview { shown: Arc::new(Mutex::new(Shown { sources: Vec::new(), routes_file })), series }
    }

    pub fn sources(&self) -> Vec<Status> {
        self.shown().sources.clone()
    }

    pub fn routes_file(&self) -> RoutesFile {
        self.shown().routes_file.clone()
    }

    pub fn add(&self, source: Status) {
        self.shown().sources.push(source);
    }

    pub fn remove(&self, source: &str) {
        self.shown().sources.retain(|status| status.name() != source);
    }

    /// The sources run by the file as it is.
    pub fn applied(&self) {
        self.series.refused.set(0);
        self.series.applied_at.set(PgTime::now().unix_seconds());
        self.shown().routes_file = RoutesFile { current: true, problem: None };
    }

    /// The file as it is cannot be used. Returns whether that is news.
    pub fn refused(&self, problem: String) -> bool {
        self.series.refused.set(1);
        let refused = RoutesFile { current: false, problem: Some(problem) };
        let mut shown = self.shown();
        let is_news = shown.routes_file != refused;
        shown.routes_file = refused;
        is_news
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // The guarded value is valid after any panic.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
