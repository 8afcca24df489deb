//! Decodes `pgoutput` (protocol version 1) in place: pure.
//!
//! * A row is neither copied nor allocated: a tuple is a list of cells that point into the message, in a reused scratch.
//! * Malformed input is an error value, never a panic.

mod reader;

use std::fmt;

use self::reader::Reader;
use crate::postgres::decode::relation::Relation;
use crate::postgres::lsn::{Lsn, PgTime};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The message ends before what it announced.
    Truncated,
    /// Bytes are left over after the message.
    Trailing,
    UnknownMessage(u8),
    UnknownTuple(u8),
    UnknownCell(u8),
    /// A length is negative where it must not be.
    BadLength,
    /// A name is not UTF-8.
    BadText,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "pgoutput message is truncated"),
            Self::Trailing => write!(f, "pgoutput message has trailing bytes"),
            Self::UnknownMessage(tag) => write!(f, "unknown pgoutput message {tag:#04x}"),
            Self::UnknownTuple(tag) => write!(f, "unknown pgoutput tuple {tag:#04x}"),
            Self::UnknownCell(tag) => write!(f, "unknown pgoutput column kind {tag:#04x}"),
            Self::BadLength => write!(f, "pgoutput length is negative"),
            Self::BadText => write!(f, "pgoutput name is not UTF-8"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// One column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// Stored out of line and not changed by this update, hence not in the WAL.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's binary output, which the relay never requests.
    Binary(&'a [u8]),
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    kind: u8,
    start: u32,
    len: u32,
}

/// Buffers that messages reuse, so that decoding a row allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    new: Vec<Cell>,
    old: Vec<Cell>,
}

/// One row: its columns in the order of the relation.
#[derive(Debug, Clone, Copy)]
pub struct Tuple<'a> {
    body: &'a [u8],
    cells: &'a [Cell],
}

impl<'a> Tuple<'a> {
    /// A row without columns.
    pub fn none() -> Tuple<'a> {
        Tuple { body: &[], cells: &[] }
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The column at `index`. A missing column reads as null.
    #[inline]
    pub fn get(&self, index: usize) -> Value<'a> {
        let Some(cell) = self.cells.get(index) else { return Value::Null };
        let start = cell.start as usize;
        let bytes = self.body.get(start..start + cell.len as usize).unwrap_or_default();
        match cell.kind {
            b't' => Value::Text(bytes),
            b'b' => Value::Binary(bytes),
            b'u' => Value::Unchanged,
            _ => Value::Null,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// The row before an update or delete.
#[derive(Debug, Clone, Copy)]
pub enum Old<'a> {
    /// Only the columns of the replica identity are set.
    Key(Tuple<'a>),
    /// The whole row (replica identity full).
    Row(Tuple<'a>),
}

#[derive(Debug)]
pub enum Message<'a> {
    Begin {
        commit_lsn: Lsn,
        committed_at: PgTime,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
        committed_at: PgTime,
    },
    Origin {
        lsn: Lsn,
        name: &'a str,
    },
    /// Owned, because a session keeps it.
    Relation(Relation),
    Type {
        oid: u32,
        schema: &'a str,
        name: &'a str,
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    /// `flags`: 1 = cascade, 2 = restart identity. The table oids follow as big-endian words.
    Truncate {
        flags: u8,
        relations: &'a [u8],
    },
    Logical {
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
}

impl Message<'_> {
    /// Whether it is a change of a table's rows.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Insert { .. } | Self::Update { .. } | Self::Delete { .. } | Self::Truncate { .. }
        )
    }
}

/// The position of the commit, if the message begins a transaction.
pub fn begin_lsn(body: &[u8]) -> Option<Lsn> {
    let mut reader = Reader { body, at: 0 };
    (reader.u8().ok()? == b'B').then(|| reader.lsn().ok())?
}

/// The end of the commit record, if the message ends a transaction.
pub fn commit_end_lsn(body: &[u8]) -> Option<Lsn> {
    let mut reader = Reader { body, at: 0 };
    if reader.u8().ok()? != b'C' {
        return None;
    }
    let (_flags, _commit_lsn) = (reader.u8().ok()?, reader.lsn().ok()?);
    reader.lsn().ok()
}

/// Decodes one message. The result borrows the message and the scratch.
pub fn decode<'a>(body: &'a [u8], scratch: &'a mut Scratch) -> Result<Message<'a>, DecodeError> {
    let mut read = Reader { body, at: 0 };
    let message = match read.u8()? {
        b'I' => {
            let relation = read.u32()?;
            expect_new(read.u8()?)?;
            read.tuple(&mut scratch.new)?;
            Message::Insert { relation, new: Tuple { body, cells: &scratch.new } }
        }
        b'U' => decode_update(&mut read, scratch)?,
        b'D' => {
            let relation = read.u32()?;
            let kind = read.u8()?;
            read.tuple(&mut scratch.old)?;
            Message::Delete { relation, old: old(kind, Tuple { body, cells: &scratch.old })? }
        }
        b'B' => Message::Begin { commit_lsn: read.lsn()?, committed_at: read.time()?, xid: read.u32()? },
        b'C' => {
            read.u8()?; // flags, unused
            Message::Commit { commit_lsn: read.lsn()?, end_lsn: read.lsn()?, committed_at: read.time()? }
        }
        b'R' => Message::Relation(read.relation()?),
        b'Y' => Message::Type { oid: read.u32()?, schema: read.text()?, name: read.text()? },
        b'O' => Message::Origin { lsn: read.lsn()?, name: read.text()? },
        b'T' => {
            let count = read.length()?;
            let flags = read.u8()?;
            let relations = read.bytes(count.checked_mul(4).ok_or(DecodeError::Truncated)?)?;
            Message::Truncate { flags, relations }
        }
        b'M' => {
            let transactional = read.u8()? & 1 == 1;
            let (lsn, prefix) = (read.lsn()?, read.text()?);
            let len = read.length()?;
            Message::Logical { transactional, lsn, prefix, content: read.bytes(len)? }
        }
        other => return Err(DecodeError::UnknownMessage(other)),
    };
    read.done()?;
    Ok(message)
}

/// Decodes a query's row: a `DataRow` in text form, without its count.
pub fn data_row<'a>(body: &'a [u8], scratch: &'a mut Scratch) -> Result<Tuple<'a>, DecodeError> {
    let mut read = Reader { body, at: 0 };
    scratch.new.clear();
    while read.at < body.len() {
        let (kind, len) = match i32::from_be_bytes(read.array()?) {
            -1 => (b'n', 0),
            len => (b't', usize::try_from(len).map_err(|_| DecodeError::BadLength)?),
        };
        let start = read.at;
        read.bytes(len)?;
        // A message is below 1 GiB, so both fit.
        scratch.new.push(Cell { kind, start: start as u32, len: len as u32 });
    }
    Ok(Tuple { body, cells: &scratch.new })
}

fn decode_update<'a>(read: &mut Reader<'a>, scratch: &'a mut Scratch) -> Result<Message<'a>, DecodeError> {
    let body = read.body;
    let relation = read.u32()?;
    let first = read.u8()?;
    if first == b'N' {
        read.tuple(&mut scratch.new)?;
        return Ok(Message::Update { relation, old: None, new: Tuple { body, cells: &scratch.new } });
    }
    read.tuple(&mut scratch.old)?;
    expect_new(read.u8()?)?;
    read.tuple(&mut scratch.new)?;
    let old = old(first, Tuple { body, cells: &scratch.old })?;
    Ok(Message::Update { relation, old: Some(old), new: Tuple { body, cells: &scratch.new } })
}

fn expect_new(tag: u8) -> Result<(), DecodeError> {
    if tag == b'N' { Ok(()) } else { Err(DecodeError::UnknownTuple(tag)) }
}

fn old(kind: u8, tuple: Tuple<'_>) -> Result<Old<'_>, DecodeError> {
    match kind {
        b'K' => Ok(Old::Key(tuple)),
        b'O' => Ok(Old::Row(tuple)),
        other => Err(DecodeError::UnknownTuple(other)),
    }
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "pgoutput_damage_tests.rs"]
mod damage_tests;
