//! Writes the JSON of dead letters by serde, byte for byte as all releases have.

use std::io::{self, Write};

use serde::{Serialize, Serializer};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

use crate::postgres::lsn::PgTime;

/// Compact, without the short forms of backspace and form feed.
struct RecordFormatter;

impl Formatter for RecordFormatter {
    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Backspace => out.write_all(b"\\u0008"),
            CharEscape::FormFeed => out.write_all(b"\\u000c"),
            other => CompactFormatter.write_char_escape(out, other),
        }
    }
}

/// Appends a value.
pub fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    to(value, out);
}

/// The bytes that a value takes.
pub fn size<T: Serialize>(value: &T) -> usize {
    let mut counter = Counter(0);
    to(value, &mut counter);
    counter.0
}

fn to<T: Serialize>(value: &T, out: impl Write) {
    // Neither writer fails, and all keys are strings.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(out, RecordFormatter));
}

struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A time in RFC 3339 with six digits, as `ce_time` has it.
#[expect(clippy::ref_option, reason = "serde's signature")]
pub fn time<S: Serializer>(time: &Option<jiff::Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    let mut text = Vec::new();
    match time {
        None => return to.serialize_none(),
        Some(time) => PgTime::from(*time).write_rfc3339(&mut text),
    }
    to.serialize_str(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::json;

    #[test]
    fn strings_are_written_as_events_have_them() {
        let control: String = (0u8..0x80).map(char::from).chain("é€😀".chars()).collect();
        let mut written = Vec::new();
        write(&control, &mut written);
        let mut expected = Vec::new();
        json::string(control.as_bytes(), &mut expected);
        assert_eq!(String::from_utf8(written), String::from_utf8(expected));
        assert_eq!(size(&"a\u{8}"), 9);
    }
}
