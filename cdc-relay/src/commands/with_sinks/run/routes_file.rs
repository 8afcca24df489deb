//! Reads the routes file of `run`, and notices when it changes.
//!
//! * The file is looked at every few seconds, so that it does not matter how it is replaced: in place, by a rename, or by a
//!   link, as Kubernetes does. SIGHUP has it read at once.
//! * It is read once it has stood still: an editor may write it in parts.
//! * One that is refused is read again every minute: a database that refused it may have changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::signal::unix::Signal;

use super::definitions::Definitions;
use crate::commands::arguments::{AmqpArgs, RoutesArgs};
use crate::commands::outcome::Failure;
use crate::commands::with_sinks::wiring;
use crate::routes::Routes;

const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long the file must not have changed before it is read.
const STILL_INTERVAL: Duration = Duration::from_millis(250);
/// How long after a refusal the file is read again.
const AGAIN_INTERVAL: Duration = Duration::from_secs(60);

pub struct RoutesFile<'a> {
    arguments: &'a RoutesArgs,
    amqp: &'a AmqpArgs,
    /// The file that was read last.
    stamp: Option<Stamp>,
    /// When it was refused; `None` while all of it is applied.
    refused_at: Option<Instant>,
}

/// A checked routes file.
pub struct ReadRoutes {
    pub routes: Arc<Routes>,
    pub definitions: Definitions,
}

/// Changes with the file.
type Stamp = (Option<SystemTime>, u64, u64);

impl<'a> RoutesFile<'a> {
    pub fn new(arguments: &'a RoutesArgs, amqp: &'a AmqpArgs) -> RoutesFile<'a> {
        RoutesFile { arguments, amqp, stamp: None, refused_at: None }
    }

    /// Reads the file, and checks everything that needs no connection.
    pub fn read(&mut self) -> Result<ReadRoutes, Failure> {
        let RoutesArgs { file, source } = self.arguments;
        // What is written from here on is noticed.
        (self.stamp, self.refused_at) = (stamp(file), None);
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        let text = text.map_err(Failure::Usage)?;
        let routes = Routes::of_file(file, &text).map_err(Failure::Usage)?;
        let names = routes.sources.iter().map(|source| source.name.get_ref().as_str());
        let mut definitions = Definitions::of(&text, names).map_err(Failure::Usage)?;
        if let Some(source) = source {
            definitions.only(source);
        }
        let routes = self.arguments.chosen(routes)?;
        wiring::check(&routes, self.amqp)?;
        Ok(ReadRoutes { routes: Arc::new(routes), definitions })
    }

    /// The file, or a part of it, cannot be used for now.
    pub fn refused(&mut self) {
        self.refused_at = Some(Instant::now());
    }

    /// Whether the file is to be read. `seen`: its stamp at the look before.
    fn is_due(&self, seen: Option<Stamp>, found: Option<Stamp>, now: Instant) -> bool {
        // A file that is away is being replaced.
        let has_changed = found.is_some() && found == seen && found != self.stamp;
        has_changed || self.refused_at.is_some_and(|at| now.saturating_duration_since(at) >= AGAIN_INTERVAL)
    }

    /// Waits until the file has changed, until it is to be read again after a refusal, or until `hangup`.
    pub async fn changed(&self, hangup: &mut Signal) {
        let mut seen = self.stamp;
        loop {
            tokio::select! {
                _ = hangup.recv() => return,
                () = tokio::time::sleep(if seen == self.stamp { LOOK_INTERVAL } else { STILL_INTERVAL }) => {}
            }
            let found = stamp(&self.arguments.file);
            if self.is_due(seen, found, Instant::now()) {
                return;
            }
            seen = found;
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_file_is_read_once_it_stands_still_and_again_while_it_is_refused() {
        let arguments = RoutesArgs { file: PathBuf::from("routes.toml"), source: None };
        let amqp = AmqpArgs { amqp_url: None };
        let [read, written] = [1, 2].map(|length| Some((None, length, 0)));
        let mut file = RoutesFile { stamp: read, ..RoutesFile::new(&arguments, &amqp) };
        let now = Instant::now();
        assert!(!file.is_due(read, read, now), "nothing has changed");
        assert!(!file.is_due(read, written, now), "somebody may still write it");
        assert!(file.is_due(written, written, now));
        assert!(!file.is_due(None, None, now), "it is being replaced");
        file.refused();
        let refused = file.refused_at.expect("a refusal");
        assert!(!file.is_due(read, read, refused + Duration::from_secs(59)));
        assert!(file.is_due(read, read, refused + Duration::from_secs(60)), "the database may have changed");
    }
}
