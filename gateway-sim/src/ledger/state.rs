//! The file of the ledger, and the index over its lines.
//!
//! * The index changes only after the file.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use anyhow::Context;

use super::Counts;
use crate::record::{Decision, Entry, Id, Line, Verdict};

/// The file of the ledger, and the index over its lines.
pub(super) struct State {
    file: File,
    /// Bytes of whole lines. A failed write may have left more.
    length: u64,
    line: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    pub(super) by_key: HashMap<Id, u32>,
    /// The first charge of a reference if there is one, its last decline otherwise.
    pub(super) by_reference: HashMap<Id, u32>,
    /// Charges beyond the first of their reference. They are few.
    further: HashMap<Id, Vec<u32>>,
    voided: HashSet<u32>,
    /// Barred references, with the amount if the void stated it.
    pub(super) barred: HashMap<Id, Option<i64>>,
    /// Keys that are being decided.
    pub(super) open: HashSet<Id>,
    /// References that are declined for now, and their amounts.
    pub(super) pending: HashMap<Id, i64>,
    /// Calls so far of references whose script counts them.
    pub(super) calls: HashMap<Id, u32>,
    pub(super) counts: Counts,
}

impl State {
    pub(super) fn new(file: File) -> State {
        State {
            file,
            length: 0,
            line: Vec::new(),
            entries: Vec::new(),
            by_key: HashMap::new(),
            by_reference: HashMap::new(),
            further: HashMap::new(),
            voided: HashSet::new(),
            barred: HashMap::new(),
            open: HashSet::new(),
            pending: HashMap::new(),
            calls: HashMap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn decision(&self, index: u32) -> Option<&Decision> {
        match self.entries.get(index as usize) {
            Some(Entry::Decision(decision)) => Some(decision),
            Some(Entry::Voided { .. } | Entry::Barred { .. }) | None => None,
        }
    }

    pub(super) fn charges(&self, reference: &Id) -> impl Iterator<Item = (u32, &Decision)> {
        let first = self.by_reference.get(reference).into_iter();
        let further = self.further.get(reference).into_iter().flatten();
        let decision = first.chain(further).filter_map(|index| Some((*index, self.decision(*index)?)));
        decision.filter(|(_, decision)| decision.verdict == Verdict::Approved)
    }

    /// The amount of the charges of a reference; without charges, the amount that barred it.
    pub(super) fn amount(&self, reference: &Id) -> Option<i64> {
        let charged = self.charges(reference).next().map(|(_, decision)| decision.amount);
        charged.or_else(|| self.barred.get(reference).copied().flatten())
    }

    pub(super) fn standing(&self, reference: &Id) -> impl Iterator<Item = &Decision> {
        self.charges(reference)
            .filter(|(index, _)| !self.voided.contains(index))
            .map(|(_, decision)| decision)
    }

    pub(super) fn given_back(&self, reference: &Id) -> impl Iterator<Item = &Decision> {
        self.charges(reference).filter(|(index, _)| self.voided.contains(index)).map(|(_, decision)| decision)
    }

    pub(super) fn recover(&mut self) -> anyhow::Result<()> {
        let mut reader = BufReader::new(self.file.try_clone()?);
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                if read > 0 {
                    tracing::warn!(
                        line = number,
                        bytes = read,
                        "the last line of the ledger was torn by a kill and is dropped; nobody received its answer"
                    );
                    self.file.set_len(self.length)?;
                }
                return Ok(());
            }
            let parsed: Line<'_> = serde_json::from_slice(&line).with_context(|| format!("line {number}"))?;
            self.index_entry(parsed.into_entry().with_context(|| format!("line {number}"))?);
            self.length += read as u64;
        }
        Ok(())
    }

    /// Writes an entry and indexes it.
    ///
    /// # Errors
    /// When the file cannot be written. The entry does not exist then.
    pub(super) fn add(&mut self, entry: Entry) -> anyhow::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &Line::of(&entry))?;
        self.line.push(b'\n');
        if let Err(error) = self.file.write_all(&self.line) {
            // Half a line would corrupt the next one.
            self.file.set_len(self.length).context("a half-written line cannot be cut off the ledger")?;
            return Err(error).context("cannot write to the ledger; check the free space of its disk");
        }
        self.length += self.line.len() as u64;
        self.index_entry(entry);
        Ok(())
    }

    fn index_entry(&mut self, entry: Entry) {
        let index = self.entries.len() as u32;
        match &entry {
            Entry::Decision(decision) => self.index(decision, index),
            Entry::Voided { key, reference, .. } => {
                let surplus = self.standing(reference).count() > 1;
                if let Some(charge) = self.by_key.get(key)
                    && self.voided.insert(*charge)
                {
                    self.counts.voids += 1;
                    self.counts.surplus -= u64::from(surplus);
                }
            }
            Entry::Barred { reference, amount, .. } => {
                self.barred.insert(reference.clone(), *amount);
            }
        }
        self.entries.push(entry);
    }

    fn index(&mut self, decision: &Decision, index: u32) {
        let reference = &decision.reference;
        self.pending.remove(reference);
        self.by_key.insert(decision.key.clone(), index);
        let charged = self.charges(reference).next().is_some();
        if decision.verdict != Verdict::Approved {
            self.counts.declines += 1;
            if !charged {
                self.by_reference.insert(reference.clone(), index);
            }
            return;
        }
        self.counts.charges += 1;
        if charged {
            let surplus = self.standing(reference).next().is_some();
            self.counts.surplus += u64::from(surplus);
            self.further.entry(reference.clone()).or_default().push(index);
        } else {
            self.by_reference.insert(reference.clone(), index);
        }
    }
}
