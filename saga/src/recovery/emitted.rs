//! Events of a service's own rows, as a recovery reads them.

use super::{Overlap, Recovery};
use crate::consumer::Record;
use crate::contract::{EventBody, HEADER_POSITION};

/// A row as it was emitted, and where that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted<T> {
    pub body: T,
    /// topic/partition/offset
    pub place: String,
    /// It has a position in the chain of its source.
    pub is_first_emission: bool,
}

impl<T> Emitted<T> {
    pub fn new(record: &Record<'_>, body: T) -> Self {
        let is_first_emission = record.header(HEADER_POSITION).is_some();
        Self { body, place: record.place(), is_first_emission }
    }
}

impl<T: EventBody> Emitted<T> {
    /// Reads a record. `what` says what it has to be, for people.
    ///
    /// # Errors
    /// When it is something else; the text says where and why.
    pub fn read(record: &Record<'_>, what: &str) -> Result<Self, String> {
        let body = record
            .envelope()
            .and_then(|envelope| envelope.read::<T>(record.body()).map_err(|error| error.to_string()));
        match body {
            Ok(body) => Ok(Self::new(record, body)),
            Err(why) => Err(format!("{}: is no {what}: {why}", record.place())),
        }
    }
}

impl Recovery {
    /// The records that could be read; the others are findings.
    pub fn readable<T>(&mut self, batch: Vec<Result<T, String>>) -> Vec<T> {
        let mut readable = Vec::with_capacity(batch.len());
        for record in batch {
            match record {
                Ok(record) => readable.push(record),
                Err(why) => self.report(why),
            }
        }
        readable
    }

    /// Finds out whether events before this one may be lacking.
    ///
    /// # Errors
    /// As [`Recovery::report_before_writing`].
    pub fn check_overlap<T>(
        &mut self,
        overlap: &mut Overlap,
        emitted: &Emitted<T>,
        is_lacking: bool,
    ) -> anyhow::Result<()> {
        match overlap.check(&emitted.place, emitted.is_first_emission, is_lacking) {
            Some(finding) => self.report_before_writing(finding),
            None => Ok(()),
        }
    }
}
