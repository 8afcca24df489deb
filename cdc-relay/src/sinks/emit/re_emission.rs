//! Emits rows once more.

use std::collections::BTreeMap;

use anyhow::Result;

use super::row_emitter::RowEmitter;
use super::{EmitOutcome, OpenTransaction, PlannedRow};

/// Which routes emit a row once more.
#[derive(Debug)]
pub enum ReEmission<'a> {
    /// A dead letter of this destination: only the routes that lead there.
    Destination(&'a str),
    /// A dead letter of a table that had no routes: all that it has now.
    All,
    /// A row that was emitted before: all routes, without halted keys.
    Emitted(&'a mut Tally),
}

/// Counts the events that were emitted once more, and those that were left out.
#[derive(Debug, Default)]
pub struct Tally {
    /// Only events with this key.
    pub key: Option<String>,
    /// Events of that key, emitted or not.
    pub seen: u64,
    /// By destination.
    pub emitted: BTreeMap<String, u64>,
    /// Events whose key is halted.
    pub halted: u64,
}

impl Tally {
    pub fn count(&mut self, destination: &str) {
        match self.emitted.get_mut(destination) {
            Some(count) => *count += 1,
            None => drop(self.emitted.insert(destination.to_owned(), 1)),
        }
    }
}

impl RowEmitter {
    /// Emits a row once more, by all routes of `to` that it matches.
    pub fn re_emit(
        &mut self,
        routed: PlannedRow<'_>,
        mut to: ReEmission<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<EmitOutcome> {
        let PlannedRow { plan, row } = routed;
        for route in &plan.routes {
            if matches!(to, ReEmission::Destination(only) if only != route.leads_to) {
                continue;
            }
            match route.matches(row) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(problem) => return Ok(EmitOutcome::Failed(problem)),
            }
            for &emission in route.emissions(row.op) {
                let (topics, record) = (&self.topics, &mut self.record);
                let destination = match route.render_as(emission, row, open.transaction, topics, record) {
                    Ok(destination) => destination,
                    Err(problem) => return Ok(EmitOutcome::Failed(problem)),
                };
                if let ReEmission::Emitted(tally) = &mut to {
                    if tally.key.as_ref().is_some_and(|key| key.as_bytes() != self.record.key) {
                        continue;
                    }
                    tally.seen += 1;
                    if self.is_halted(route) {
                        tally.halted += 1;
                        continue;
                    }
                }
                if let EmitOutcome::Failed(problem) = self.send(destination, plan, open)? {
                    return Ok(EmitOutcome::Failed(problem));
                }
                if let ReEmission::Emitted(tally) = &mut to {
                    tally.count(&route.leads_to);
                }
            }
        }
        Ok(EmitOutcome::Emitted)
    }
}
