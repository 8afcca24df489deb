//! Writes the text form of Postgres values as JSON, straight into a reused buffer.
//!
//! The session is set to ISO dates, UTC and hexadecimal bytea (see `wire`), so each conversion is a copy with
//! little around it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::routes::Cast;
use crate::template::Problem;

pub const TIMESTAMPTZ: u32 = 1184;

/// How a column's text becomes JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bool,
    /// Digits: valid JSON as it is.
    Integer,
    /// A number, or one of NaN and the infinities, which JSON has only as text.
    Number,
    Json,
    Bytea,
    Instant,
    /// `timestamp without time zone`: ISO, without a zone.
    Local,
    /// Text that needs no escapes.
    Plain,
    Text,
    /// Cast: must be a number.
    CheckedNumber,
    /// Cast: must be JSON.
    CheckedJson,
}

impl Form {
    pub fn of(type_oid: u32, cast: Option<Cast>) -> Form {
        let natural = match type_oid {
            16 => Form::Bool,
            20 | 21 | 23 | 26 | 28 => Form::Integer,
            700 | 701 | 1700 => Form::Number,
            114 | 3802 => Form::Json,
            17 => Form::Bytea,
            TIMESTAMPTZ => Form::Instant,
            1114 => Form::Local,
            2950 | 1082 | 1083 | 1266 => Form::Plain,
            _ => Form::Text,
        };
        match (cast, natural) {
            (None, form) => form,
            (Some(Cast::Text), Form::Bytea | Form::Instant | Form::Local) => natural,
            (Some(Cast::Text), _) => Form::Text,
            (Some(Cast::Number), Form::Integer) => natural,
            (Some(Cast::Number), _) => Form::CheckedNumber,
            (Some(Cast::Json), Form::Json) => natural,
            (Some(Cast::Json), _) => Form::CheckedJson,
        }
    }

    /// Appends `text` as a JSON value.
    #[inline]
    pub fn write(self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
        match self {
            Form::Bool => out.extend_from_slice(if text == b"t" { b"true" } else { b"false" }),
            Form::Integer | Form::Json => out.extend_from_slice(text),
            Form::Number if is_number(text) => out.extend_from_slice(text),
            Form::Number | Form::Plain => quoted(out, |out| out.extend_from_slice(text)),
            Form::Bytea => bytea(text, out)?,
            Form::Instant => quoted(out, |out| instant(text, out)),
            Form::Local => quoted(out, |out| local(text, out)),
            Form::Text => string(text, out),
            Form::CheckedNumber if is_number(text) => out.extend_from_slice(text),
            Form::CheckedNumber => return Err(not("a number", text)),
            Form::CheckedJson => {
                serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|_| not("JSON", text))?;
                out.extend_from_slice(text);
            }
        }
        Ok(())
    }
}

fn not(what: &str, text: &[u8]) -> Problem {
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
fn first_special(text: &[u8]) -> Option<usize> {
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

/// Whether Postgres' text of a number is one in JSON too: not NaN or Infinity, and without a leading zero or plus.
pub fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [b'0', b'0'..=b'9', ..] | [] => false,
        [b'0'..=b'9', ..] => {
            let plain = digits.iter().all(u8::is_ascii_digit);
            plain || serde_json::from_slice::<serde_json::Number>(text).is_ok()
        }
        _ => false,
    }
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

/// `\xdeadbeef` → base64.
fn bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let hex = text.strip_prefix(b"\\x").ok_or_else(|| not("hexadecimal bytea", text))?;
    let (pairs, odd) = hex.as_chunks::<2>();
    let byte = |pair: &[u8; 2]| Some(nibble(pair[0])? << 4 | nibble(pair[1])?);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    let bytes = bytes.filter(|_| odd.is_empty()).ok_or_else(|| not("hexadecimal bytea", text))?;
    quoted(out, |out| out.extend_from_slice(STANDARD.encode(bytes).as_bytes()));
    Ok(())
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
