//! Saves the progress of snapshots once its rows are acknowledged.

use anyhow::Result;

use super::{Snapshots, TableProgress};
use crate::postgres::lsn::Lsn;

/// Progress of a table whose rows were emitted in the transaction of this commit.
pub struct UnsavedProgress {
    pub commit_lsn: Lsn,
    pub table: String,
    pub progress: TableProgress,
}

impl UnsavedProgress {
    /// Rows that the publication left out wait for the checkpoint: a new session would emit older states of them after the
    /// chunk, and no later one. All other rows wait for the acknowledgements alone.
    fn may_be_saved(&self, positions: AckPositions) -> bool {
        let until = if self.progress.heals { positions.saved } else { positions.confirmed };
        self.commit_lsn < until
    }
}

/// How far the stream is acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct AckPositions {
    /// Every sink has acknowledged up to here.
    pub confirmed: Lsn,
    /// The checkpoint is saved up to here.
    pub saved: Lsn,
}

impl Snapshots {
    /// Saves the progress whose rows are acknowledged, by `save`, which returns whether Kafka took the record.
    pub fn save_progress(
        &mut self,
        positions: AckPositions,
        mut save: impl FnMut(&str, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        while let Some(first) = self.unsaved.front().filter(|first| first.may_be_saved(positions)) {
            // A later progress of the same table that is acknowledged too replaces this one.
            let next = self.unsaved.get(1);
            let superseded =
                next.is_some_and(|next| next.may_be_saved(positions) && next.table == first.table);
            if !superseded && !save(&first.table, &serde_json::to_vec(&first.progress)?)? {
                return Ok(());
            }
            self.unsaved.pop_front();
        }
        Ok(())
    }
}
