//! Builds rows in the stream's form from other sources, so that one code path emits all rows.

use crate::postgres::decode::pgoutput::{DecodeError, Message, Scratch, Tuple, decode};

/// An insert in the form of `pgoutput`, in reused buffers.
#[derive(Debug)]
pub struct RowBuilder {
    message: Vec<u8>,
    columns: u16,
    scratch: Scratch,
}

/// Tag, relation, tag of the new row, number of columns.
const HEAD: [u8; 8] = [b'I', 0, 0, 0, 0, b'N', 0, 0];

impl Default for RowBuilder {
    fn default() -> RowBuilder {
        RowBuilder { message: HEAD.to_vec(), columns: 0, scratch: Scratch::default() }
    }
}

impl RowBuilder {
    /// Begins a new row.
    pub fn begin(&mut self) {
        self.message.clear();
        self.message.extend_from_slice(&HEAD);
        self.columns = 0;
    }

    pub fn null(&mut self) {
        self.column(b'n');
    }

    /// Appends a column whose value is unknown.
    pub fn unknown(&mut self) {
        self.column(b'u');
    }

    /// Appends the type's text output. Postgres has no value of 2 GiB or more.
    pub fn text(&mut self, text: &[u8]) {
        self.column(b't');
        self.message.extend_from_slice(&(text.len() as u32).to_be_bytes());
        self.message.extend_from_slice(text);
    }

    fn column(&mut self, kind: u8) {
        self.message.push(kind);
        self.columns += 1;
        if let Some(count) = self.message.get_mut(6..8) {
            count.copy_from_slice(&self.columns.to_be_bytes());
        }
    }

    /// The row, as the stream would have it.
    pub fn tuple(&mut self) -> Result<Tuple<'_>, DecodeError> {
        match decode(&self.message, &mut self.scratch)? {
            Message::Insert { new, .. } => Ok(new),
            _ => Err(DecodeError::UnknownMessage(b'I')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::decode::pgoutput::Value;

    #[test]
    fn a_built_row_reads_as_a_streamed_one() {
        let mut builder = RowBuilder::default();
        for round in 0..2 {
            builder.begin();
            builder.null();
            builder.text(b"");
            builder.unknown();
            builder.text(if round == 0 { b"a longer one" } else { b"b" });
            let row: Vec<Value<'_>> = builder.tuple().unwrap().iter().collect();
            let last: &[u8] = if round == 0 { b"a longer one" } else { b"b" };
            assert_eq!(row, [Value::Null, Value::Text(b""), Value::Unchanged, Value::Text(last)]);
        }
        builder.begin();
        assert_eq!(builder.tuple().unwrap().len(), 0);
    }
}
