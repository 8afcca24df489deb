//! Reads the routes file of `run`, and notices when it changes.
//!
//! * The file is looked at every few seconds, so that it does not matter how it is replaced: in place, by a rename, or by a
//!   link, as Kubernetes does. SIGHUP has it read at once.
//! * It is read once it has stood still: an editor may write it in parts.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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

pub struct RoutesFile<'a> {
    arguments: &'a RoutesArgs,
    amqp: &'a AmqpArgs,
    /// The file that was read last.
    stamp: Option<Stamp>,
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
        RoutesFile { arguments, amqp, stamp: None }
    }

    /// Reads the file, and checks everything that needs no connection.
    pub fn read(&mut self) -> Result<ReadRoutes, Failure> {
        let RoutesArgs { file, source } = self.arguments;
        // What is written from here on is noticed.
        self.stamp = stamp(file);
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

    /// Waits until the file has changed, or until `hangup`.
    pub async fn changed(&self, hangup: &mut Signal) {
        let mut seen = self.stamp;
        loop {
            tokio::select! {
                _ = hangup.recv() => return,
                () = tokio::time::sleep(if seen == self.stamp { LOOK_INTERVAL } else { STILL_INTERVAL }) => {}
            }
            let now = stamp(&self.arguments.file);
            // A file that is away is being replaced.
            if now.is_some() && now == seen && now != self.stamp {
                return;
            }
            seen = now;
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}
