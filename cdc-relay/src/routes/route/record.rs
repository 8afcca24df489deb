//! A record in memory, before a sink has it.

use super::plan::Plan;

/// One record, in buffers that the next one reuses.
#[derive(Debug, Default)]
pub struct Record {
    pub key: Vec<u8>,
    /// The key could be emitted; it may be empty.
    pub has_key: bool,
    pub value: Vec<u8>,
    /// The value is null: for a compacted topic, the end of its key.
    pub tombstone: bool,
    pub id: Vec<u8>,
    pub kind: Vec<u8>,
    pub subject: Vec<u8>,
    /// Further headers.
    pub headers: Vec<HeaderSpan>,
    pub header_values: Vec<u8>,
    pub(super) topic: Vec<u8>,
    pub(super) scratch: Vec<u8>,
}

/// A further header: the index of its name in `Plan::header_names`, and the end of its value in `header_values`.
#[derive(Debug, Clone, Copy)]
pub struct HeaderSpan {
    pub name: usize,
    pub end: usize,
}

impl Record {
    #[inline]
    pub(super) fn clear(&mut self) {
        for part in [&mut self.key, &mut self.value, &mut self.id, &mut self.kind, &mut self.subject] {
            part.clear();
        }
        self.headers.clear();
        self.header_values.clear();
        self.topic.clear();
        (self.tombstone, self.has_key) = (false, false);
    }

    /// Names and values of the further headers.
    pub fn headers<'r>(&'r self, plan: &'r Plan) -> impl Iterator<Item = (&'r str, &'r [u8])> {
        let starts = std::iter::once(0).chain(self.headers.iter().map(|header| header.end));
        self.headers.iter().zip(starts).map(|(&HeaderSpan { name, end }, start)| {
            let name = plan.header_names.get(name).map_or("", String::as_str);
            (name, self.header_values.get(start..end).unwrap_or_default())
        })
    }

    /// An upper estimate of the record's bytes on the wire.
    #[inline]
    pub fn size(&self) -> usize {
        const FRAME: usize = 320; // names of the fixed headers, lengths, ce_time, position, chain
        self.key.len()
            + self.value.len()
            + self.id.len()
            + self.kind.len()
            + self.subject.len()
            + self.header_values.len()
            + self.headers.len() * 32
            + FRAME
    }
}
