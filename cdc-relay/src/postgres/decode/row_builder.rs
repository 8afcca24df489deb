//! Rows that did not come from the stream, brought into the stream's form: then all that emits rows takes them too.

use crate::postgres::decode::pgoutput::{DecodeError, Message, Scratch, Tuple, decode};

/// An insert in the form of `pgoutput`, in buffers that are reused.
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

    /// A column whose value is not known.
    pub fn unknown(&mut self) {
        self.column(b'u');
    }

    /// `text` is the type's text output, below 2 GiB as all that Postgres has.
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

    /// The row, as if it had been streamed.
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
    fn a_row_that_is_made_reads_as_one_that_was_streamed() {
        let mut made = RowBuilder::default();
        for round in 0..2 {
            made.begin();
            made.null();
            made.text(b"");
            made.unknown();
            made.text(if round == 0 { b"a longer one" } else { b"b" });
            let row: Vec<Value<'_>> = made.tuple().unwrap().iter().collect();
            let last: &[u8] = if round == 0 { b"a longer one" } else { b"b" };
            assert_eq!(row, [Value::Null, Value::Text(b""), Value::Unchanged, Value::Text(last)]);
        }
        made.begin();
        assert_eq!(made.tuple().unwrap().len(), 0);
    }
}
