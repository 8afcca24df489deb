//! Writes the text form of Postgres values as JSON, into a reused buffer.
//!
//! * The session prints ISO dates, UTC, ISO 8601 intervals and hexadecimal bytea (`postgres::settings`), so that a
//!   conversion is little more than a copy.
//! * A type that is not built in was replaced before by the built-in type that it prints like (`catalog`).

mod array;
mod strict;
mod string;
mod time;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use self::string::string;
pub use self::time::instant;
use self::time::{epoch, local};
use crate::routes::cast::Cast;
use crate::routes::problem::Problem;

pub const TIMESTAMPTZ: u32 = 1184;
pub const TEXT: u32 = 25;
pub const BOOL: u32 = 16;
const TIMESTAMP: u32 = 1114;
const DATE: u32 = 1082;
const BYTEA: u32 = 17;
const TEXT_ARRAY: u32 = 1009;

/// The JSON form of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bool,
    /// Digits, which are valid JSON.
    Integer,
    /// A number. NaN, the infinities, and a number that not every reader accepts become strings.
    Number,
    Json,
    Jsonb,
    /// As base64.
    Bytea,
    Instant,
    /// `timestamp without time zone`: ISO, without a zone.
    Local,
    /// Text that needs no escapes.
    Plain,
    Text,
    Array {
        element: &'static Form,
        delimiter: u8,
    },
    /// Cast: must be a number.
    CheckedNumber,
    /// Cast: must be JSON.
    CheckedJson,
    /// Cast: a date or timestamp as a count since 1970-01-01 UTC, of units of so many microseconds.
    Epoch {
        micros: i64,
    },
    /// Cast: bytea as hexadecimal digits.
    Hex,
}

/// Arrays whose elements have a form of their own: array, element, the element's form. Elements of all others are text.
static ARRAYS: [(u32, u32, Form); 23] = [
    (1000, BOOL, Form::Bool),
    (1001, BYTEA, Form::Bytea),
    (1002, 18, Form::Text),
    (1005, 21, Form::Integer),
    (1007, 23, Form::Integer),
    (1016, 20, Form::Integer),
    (1028, 26, Form::Integer),
    (1011, 28, Form::Integer),
    (1012, 29, Form::Integer),
    (271, 5069, Form::Integer),
    (1021, 700, Form::Number),
    (1022, 701, Form::Number),
    (1231, 1700, Form::Number),
    (199, 114, Form::Json),
    (3807, 3802, Form::Jsonb),
    (1185, TIMESTAMPTZ, Form::Instant),
    (1115, TIMESTAMP, Form::Local),
    (1182, DATE, Form::Plain),
    (1183, 1083, Form::Plain),
    (1270, 1266, Form::Plain),
    (2951, 2950, Form::Plain),
    (TEXT_ARRAY, TEXT, Form::Text),
    (BOX_ARRAY, 603, Form::Text),
];

/// The one built-in type whose arrays have another delimiter than a comma.
const BOX_ARRAY: u32 = 1020;

/// The array type of an element type. An element type without a form of its own has the array type of text.
pub fn array_of(element: u32) -> u32 {
    ARRAYS.iter().find(|(_, known, _)| *known == element).map_or(TEXT_ARRAY, |&(array, _, _)| array)
}

impl Form {
    /// The form of a type.
    pub fn natural(type_oid: u32) -> Form {
        match type_oid {
            BOOL => Form::Bool,
            20 | 21 | 23 | 26 | 28 | 29 | 5069 => Form::Integer,
            700 | 701 | 1700 => Form::Number,
            114 => Form::Json,
            3802 => Form::Jsonb,
            BYTEA => Form::Bytea,
            TIMESTAMPTZ => Form::Instant,
            TIMESTAMP => Form::Local,
            2950 | DATE | 1083 | 1266 => Form::Plain,
            _ => match ARRAYS.iter().find(|(array, _, _)| *array == type_oid) {
                Some((array, _, element)) => {
                    Form::Array { element, delimiter: if *array == BOX_ARRAY { b';' } else { b',' } }
                }
                None => Form::Text,
            },
        }
    }

    /// The form of a type under a cast. A cast that no value of the type could pass is a problem.
    pub fn of(type_oid: u32, cast: Option<Cast>) -> Result<Form, Problem> {
        let natural = Form::natural(type_oid);
        let timed = matches!(type_oid, TIMESTAMPTZ | TIMESTAMP | DATE);
        let wrong = |cast: &str, of: &str| Err(Problem(format!("the cast `{cast}` is for {of}")));
        Ok(match (cast, natural) {
            (None, form) => form,
            (Some(Cast::Text), Form::Bytea | Form::Instant | Form::Local) => natural,
            (Some(Cast::Text), _) => Form::Text,
            (Some(Cast::Number), Form::Integer) => natural,
            (Some(Cast::Number), _) => Form::CheckedNumber,
            (Some(Cast::Json), Form::Json | Form::Jsonb) => natural,
            (Some(Cast::Json), _) => Form::CheckedJson,
            (Some(Cast::EpochMs), _) if timed => Form::Epoch { micros: 1000 },
            (Some(Cast::EpochUs), _) if timed => Form::Epoch { micros: 1 },
            (Some(Cast::EpochMs), _) => return wrong("epoch_ms", "dates and timestamps"),
            (Some(Cast::EpochUs), _) => return wrong("epoch_us", "dates and timestamps"),
            (Some(Cast::Hex), Form::Bytea) => Form::Hex,
            (Some(Cast::Hex), _) => return wrong("hex", "bytea"),
        })
    }

    /// Appends `text` as a JSON value. `scratch` is a buffer for unescaping.
    #[inline]
    pub fn write(self, text: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Problem> {
        match self {
            Form::Array { element, delimiter } => {
                array::write(text, delimiter, |value, out| element.write_scalar(value, out), scratch, out)
            }
            Form::Epoch { micros } => epoch(text, micros, out),
            scalar => scalar.write_scalar(text, out),
        }
    }

    /// As `write`, for any form but arrays.
    #[inline]
    pub fn write_scalar(self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
        match self {
            Form::Bool => out.extend_from_slice(if text == b"t" { b"true" } else { b"false" }),
            Form::Integer => out.extend_from_slice(text),
            Form::Json => strict::append(text, out),
            Form::Jsonb => strict::append_binary(text, out),
            Form::Number if is_number(text) => out.extend_from_slice(text),
            Form::Number | Form::Plain => quoted(out, |out| out.extend_from_slice(text)),
            Form::Bytea => bytea(text, out)?,
            Form::Instant => quoted(out, |out| instant(text, out)),
            Form::Local => quoted(out, |out| local(text, out)),
            Form::Text | Form::Array { .. } => string(text, out),
            Form::CheckedNumber if is_number(text) => out.extend_from_slice(text),
            Form::CheckedNumber => return Err(Problem::not_a("a number that every reader accepts", text)),
            Form::CheckedJson => {
                serde_json::from_slice::<serde::de::IgnoredAny>(text)
                    .map_err(|_| Problem::not_a("JSON", text))?;
                strict::append(text, out);
            }
            Form::Epoch { micros } => epoch(text, micros, out)?,
            Form::Hex => {
                let hex =
                    text.strip_prefix(b"\\x").ok_or_else(|| Problem::not_a("hexadecimal bytea", text))?;
                quoted(out, |out| out.extend_from_slice(hex));
            }
        }
        Ok(())
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// Whether Postgres' text of a number is a JSON number that every reader accepts.
#[inline]
fn is_number(text: &[u8]) -> bool {
    strict::is_number(text) && strict::is_readable(text)
}

/// Appends `\xdeadbeef` as base64, by pieces on the stack.
fn bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    const PIECE: usize = 48;
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bad = || Problem::not_a("hexadecimal bytea", text);
    let hex = text.strip_prefix(b"\\x").ok_or_else(bad)?;
    out.push(b'"');
    for piece in hex.chunks(2 * PIECE) {
        let (mut bytes, mut encoded) = ([0u8; PIECE], [0u8; PIECE / 3 * 4]);
        let (pairs, odd) = piece.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else { return Err(bad()) };
            *byte = high << 4 | low;
        }
        let bytes = bytes.get(..pairs.len()).unwrap_or_default();
        let len = STANDARD.encode_slice(bytes, &mut encoded).map_err(|_| bad())?;
        out.extend_from_slice(encoded.get(..len).unwrap_or_default());
    }
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
