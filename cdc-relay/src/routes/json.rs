//! Writes the text form of Postgres values as JSON, straight into a reused buffer.
//!
//! The session is set to ISO dates, UTC, ISO 8601 intervals and hexadecimal bytea (see `session`), so each conversion is
//! a copy with little around it. Types that are no built-in ones were replaced before by the built-in type that they
//! print like (see `catalog`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use crate::postgres::utf8;
use crate::routes::Cast;
use crate::routes::array;
use crate::routes::strict;
use crate::routes::template::Problem;

pub const TIMESTAMPTZ: u32 = 1184;
pub const TEXT: u32 = 25;
pub const BOOL: u32 = 16;
const TIMESTAMP: u32 = 1114;
const DATE: u32 = 1082;
const BYTEA: u32 = 17;
const TEXT_ARRAY: u32 = 1009;

/// How a column's text becomes JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bool,
    /// Digits: valid JSON as it is.
    Integer,
    /// A number, or what JSON has only as text: NaN, the infinities, and what no reader takes as a number.
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

/// Arrays whose elements have a form of their own: array, element, the element's form. All others are text.
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

/// The one built-in type whose arrays are not separated by commas.
const BOX_ARRAY: u32 = 1020;

/// The array type of these elements; those without a form of their own are text.
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

    /// The form of a type under a cast. Refuses a cast that no value of the type could pass.
    pub fn of(type_oid: u32, cast: Option<Cast>) -> Result<Form, Problem> {
        let natural = Form::natural(type_oid);
        let timed = matches!(type_oid, TIMESTAMPTZ | TIMESTAMP | DATE);
        let wrong = |cast: &str, of: &str| Err(Problem(format!("the cast `{cast}` is of {of}")));
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

    /// Appends `text` as a JSON value. `scratch` is for what has to be unescaped first.
    #[inline]
    pub fn write(self, text: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Problem> {
        match self {
            Form::Array { element, delimiter } => array::write(text, (*element, delimiter), scratch, out),
            Form::Epoch { micros } => epoch(text, micros, out),
            scalar => scalar.write_scalar(text, out),
        }
    }

    /// As `write`, for what is no array.
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
            Form::CheckedNumber => return Err(not("a number that every reader takes", text)),
            Form::CheckedJson => {
                serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|_| not("JSON", text))?;
                strict::append(text, out);
            }
            Form::Epoch { micros } => epoch(text, micros, out)?,
            Form::Hex => {
                let hex = text.strip_prefix(b"\\x").ok_or_else(|| not("hexadecimal bytea", text))?;
                quoted(out, |out| out.extend_from_slice(hex));
            }
        }
        Ok(())
    }
}

pub fn not(what: &str, text: &[u8]) -> Problem {
    let shown: String = String::from_utf8_lossy(text).chars().take(64).collect();
    Problem(format!("the value `{shown}` is not {what}"))
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// Appends a JSON string.
#[inline]
pub fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, out);
    out.push(b'"');
}

/// Appends the inside of a JSON string. Runs without an escape are copied whole.
#[inline]
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    if !utf8::is_valid(text) {
        return escape(utf8::owned(text).as_bytes(), out);
    }
    let mut rest = text;
    while let Some(at) = first_special(rest) {
        let (clean, tail) = rest.split_at(at);
        out.extend_from_slice(clean);
        let Some((&byte, tail)) = tail.split_first() else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// Eight bytes at a time: is any below 0x20, a quote or a backslash? (Zero-byte tests on the differences.)
#[inline]
pub fn first_special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let (words, tail) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let below = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = has_zero(word ^ (ONES * u64::from(b'"')));
        let slash = has_zero(word ^ (ONES * u64::from(b'\\')));
        if (below | quote | slash) & HIGH != 0 {
            let start = index * 8;
            // A borrow can raise a false alarm above the first hit, never below it; look again byte by byte.
            if let Some(at) = text[start..start + 8].iter().position(is_special) {
                return Some(start + at);
            }
        }
    }
    let start = words.len() * 8;
    tail.iter().position(is_special).map(|at| start + at)
}

fn is_special(byte: &u8) -> bool {
    *byte < 0x20 || *byte == b'"' || *byte == b'\\'
}

/// Whether Postgres' text of a number is one in JSON too, and one that every reader takes.
#[inline]
fn is_number(text: &[u8]) -> bool {
    strict::is_number(text) && strict::is_readable(text)
}

/// `2026-11-23 00:00:00.12+00` → `2026-11-23T00:00:00.120000Z`. What is not of that shape (infinity, years outside
/// 0001–9999) stays as Postgres prints it.
pub fn instant(text: &[u8], out: &mut Vec<u8>) {
    match text.strip_suffix(b"+00") {
        Some(time) if timestamp(time, out) => out.push(b'Z'),
        _ => out.extend_from_slice(text),
    }
}

fn local(text: &[u8], out: &mut Vec<u8>) {
    if !timestamp(text, out) {
        out.extend_from_slice(text);
    }
}

/// Date and time joined by `T`, with six digits of fraction.
fn timestamp(text: &[u8], out: &mut Vec<u8>) -> bool {
    if text.len() < 19 || text.len() > 26 || text[10] != b' ' {
        return false;
    }
    let (seconds, fraction) = text.split_at(19);
    let fraction = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return false,
    };
    out.extend_from_slice(&seconds[..10]);
    out.push(b'T');
    out.extend_from_slice(&seconds[11..]);
    out.push(b'.');
    out.extend_from_slice(fraction);
    out.extend_from_slice(&b"000000"[fraction.len()..]);
    true
}

/// `\xdeadbeef` → base64, by pieces on the stack.
fn bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    const PIECE: usize = 48;
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bad = || not("hexadecimal bytea", text);
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

/// Infinity, and years outside 0001–9999, have no count here and cannot be emitted.
fn epoch(text: &[u8], micros: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
    let plain = text.strip_suffix(b"+00").unwrap_or(text);
    let time = std::str::from_utf8(plain).ok().and_then(|text| text.parse::<DateTime>().ok());
    let instant = time.and_then(|time| Offset::UTC.to_timestamp(time).ok());
    let instant = instant.ok_or_else(|| not("a time that can be counted from 1970", text))?;
    let count = instant.as_microsecond().div_euclid(micros);
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    Ok(())
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
