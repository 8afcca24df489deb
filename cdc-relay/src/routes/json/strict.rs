//! Writes JSON of a column so that every reader accepts the record; Postgres accepts more than they do.
//!
//! * Half of a surrogate pair (`\ud800` alone), which the type `json` stores, becomes U+FFFD.
//! * A number beyond a double, or longer than readers accept, becomes a string of the same digits.
//! * A value nested deeper, or with a longer name, than readers accept becomes a string of its whole text.
//! * Everything else stays byte for byte, a name that an object has twice too: it is valid JSON.

use super::string::{first_special, string};

/// Levels of nesting. serde_json reads 127, jq 256, Jackson 1,000; the body around the value has some itself.
const DEPTH_MAX: usize = 100;
/// Jackson's limit.
const NUMBER_BYTES_MAX: usize = 1000;
/// Jackson's limit of a member's name.
const NAME_BYTES_MAX: usize = 50_000;
/// A double holds every number with so many digits before the point.
const DOUBLE_DIGITS: usize = 308;
/// The digits of an exponent that a 32-bit integer holds.
const EXPONENT_DIGITS_MAX: usize = 9;

/// Appends a value that Postgres or a parser found to be JSON.
pub fn append(text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    if !copy(text, out) {
        out.truncate(start);
        string(text, out);
    }
}

/// As `append`, for the type `jsonb`: it has neither exponents nor surrogates.
#[inline]
pub fn append_binary(text: &[u8], out: &mut Vec<u8>) {
    // Neither too deep nor a number too long.
    if text.len() <= 2 * DEPTH_MAX {
        out.extend_from_slice(text);
    } else {
        append(text, out);
    }
}

/// Copies the value, corrected. False: it is nested too deeply, or has too long a name.
fn copy(text: &[u8], out: &mut Vec<u8>) -> bool {
    let (mut at, mut depth) = (0, 0usize);
    // The begin of the part that is not copied yet.
    let mut clean = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => {
                let end = skip_string(text, at + 1, &mut clean, out);
                if end - at > NAME_BYTES_MAX + 2 && is_name(&text[end..]) {
                    return false;
                }
                at = end;
            }
            b'-' | b'0'..=b'9' => {
                let rest = &text[at..];
                let end = at + rest.iter().position(|byte| !is_of_number(*byte)).unwrap_or(rest.len());
                let number = &text[at..end];
                if !is_readable(number) {
                    out.extend_from_slice(&text[clean..at]);
                    string(number, out);
                    clean = end;
                }
                at = end;
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return false;
                }
                at += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    out.extend_from_slice(&text[clean..]);
    true
}

/// Whether the string before `rest` names a member.
fn is_name(rest: &[u8]) -> bool {
    rest.trim_ascii_start().starts_with(b":")
}

/// The index behind the string that begins at `at`.
fn skip_string(text: &[u8], mut at: usize, clean: &mut usize, out: &mut Vec<u8>) -> usize {
    while let Some(offset) = first_special(&text[at..]) {
        at += offset;
        match text[at] {
            b'"' => return at + 1,
            b'\\' => match escape(&text[at..]) {
                Escape::Sound(bytes) => at = (at + bytes).min(text.len()),
                Escape::Half => {
                    out.extend_from_slice(&text[*clean..at]);
                    out.extend_from_slice(b"\\ufffd");
                    at += UNIT;
                    *clean = at;
                }
            },
            _ => at += 1,
        }
    }
    text.len()
}

/// `\ud800`
const UNIT: usize = 6;

enum Escape {
    /// Its length in bytes.
    Sound(usize),
    /// Half of a surrogate pair.
    Half,
}

fn escape(text: &[u8]) -> Escape {
    match unit(text) {
        None => Escape::Sound(2),
        Some(0xD800..=0xDBFF) => match text.get(UNIT..).and_then(unit) {
            Some(0xDC00..=0xDFFF) => Escape::Sound(2 * UNIT),
            _ => Escape::Half,
        },
        Some(0xDC00..=0xDFFF) => Escape::Half,
        Some(_) => Escape::Sound(UNIT),
    }
}

/// The UTF-16 code unit that an escape at the beginning stands for.
fn unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E')
}

/// Whether every reader accepts a JSON number: a double holds it, and it is not too long.
#[inline]
pub fn is_readable(number: &[u8]) -> bool {
    if number.len() > NUMBER_BYTES_MAX {
        return false;
    }
    let exponent = number.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let is_plain = exponent.is_none();
    if is_plain && number.iter().take_while(|byte| **byte != b'.').count() <= DOUBLE_DIGITS {
        return true;
    }
    let digits = exponent.map_or(0, |at| number[at..].iter().filter(|byte| byte.is_ascii_digit()).count());
    let value = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    digits <= EXPONENT_DIGITS_MAX && value.is_some_and(f64::is_finite)
}

/// Whether the text is a number in JSON: without a leading zero or plus, and neither NaN nor Infinity.
#[inline]
pub fn is_number(text: &[u8]) -> bool {
    let (whole, rest) = digits(text.strip_prefix(b"-").unwrap_or(text));
    if whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') {
        return false;
    }
    let rest = match rest.strip_prefix(b".").map(digits) {
        None => rest,
        Some(([], _)) => return false,
        Some((_, rest)) => rest,
    };
    match rest {
        [] => true,
        [b'e' | b'E', exponent @ ..] => {
            let digits =
                digits(exponent.strip_prefix(b"-").or(exponent.strip_prefix(b"+")).unwrap_or(exponent));
            matches!(digits, ([_, ..], []))
        }
        _ => false,
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}
