//! Reads the parts of a `pgoutput` message.

use super::{Cell, DecodeError};
use crate::postgres::decode::relation::{Column, Relation};
use crate::postgres::lsn::{Lsn, PgTime};

/// Reads the parts of one message in order. A short message is an error.
pub(super) struct Reader<'a> {
    pub(super) body: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).ok_or(DecodeError::Truncated)?;
        let bytes = self.body.get(self.at..end).ok_or(DecodeError::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Truncated)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array()?)))
    }

    pub(super) fn time(&mut self) -> Result<PgTime, DecodeError> {
        Ok(PgTime(i64::from_be_bytes(self.array()?)))
    }

    #[inline]
    pub(super) fn length(&mut self) -> Result<usize, DecodeError> {
        let len = i32::from_be_bytes(self.array()?);
        usize::try_from(len).map_err(|_| DecodeError::BadLength)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&b| b == 0).ok_or(DecodeError::Truncated)?;
        let bytes = self.bytes(len)?;
        self.at += 1;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::BadText)
    }

    #[inline]
    pub(super) fn tuple(&mut self, cells: &mut Vec<Cell>) -> Result<(), DecodeError> {
        cells.clear();
        for _ in 0..self.u16()? {
            let kind = self.u8()?;
            let len = match kind {
                b'n' | b'u' => 0,
                b't' | b'b' => self.length()?,
                other => return Err(DecodeError::UnknownCell(other)),
            };
            let start = self.at;
            self.bytes(len)?;
            // A message is below 1 GiB, so both fit.
            cells.push(Cell { kind, start: start as u32, len: len as u32 });
        }
        Ok(())
    }

    pub(super) fn relation(&mut self) -> Result<Relation, DecodeError> {
        let id = self.u32()?;
        let (schema, name, identity) = (self.text()?.to_owned(), self.text()?.to_owned(), self.u8()?);
        let count = self.u16()?;
        let mut columns = Vec::with_capacity(usize::from(count.min(1664)));
        for _ in 0..count {
            let key = self.u8()? & 1 == 1;
            let name = self.text()?.to_owned();
            let type_oid = self.u32()?;
            self.u32()?; // type modifier
            columns.push(Column { name, type_oid, key });
        }
        Ok(Relation { id, schema, name, identity, columns })
    }

    #[inline]
    pub(super) fn done(&self) -> Result<(), DecodeError> {
        if self.at == self.body.len() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}
