//! Writes Postgres' dates and timestamps as RFC 3339, or as a count since 1970.
//!
//! * RFC 3339 cannot express infinity and years outside 0001–9999. Those stay as Postgres prints them, and have no count.

use jiff::civil::DateTime;
use jiff::tz::Offset;

use crate::routes::problem::Problem;

/// `2026-11-23 00:00:00.12+00` → `2026-11-23T00:00:00.120000Z`. Text of any other shape (infinity, years outside
/// 0001–9999) stays as Postgres prints it.
#[inline]
pub fn instant(text: &[u8], out: &mut Vec<u8>) {
    match text.strip_suffix(b"+00") {
        Some(time) if timestamp(time, out) => out.push(b'Z'),
        _ => out.extend_from_slice(text),
    }
}

#[inline]
pub fn local(text: &[u8], out: &mut Vec<u8>) {
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

/// Appends the count of units of `micros` microseconds since 1970-01-01 UTC.
pub fn epoch(text: &[u8], micros: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
    let plain = text.strip_suffix(b"+00").unwrap_or(text);
    let time = std::str::from_utf8(plain).ok().and_then(|text| text.parse::<DateTime>().ok());
    let instant = time.and_then(|time| Offset::UTC.to_timestamp(time).ok());
    let instant = instant.ok_or_else(|| Problem::not_a("a time that can be counted from 1970", text))?;
    let count = instant.as_microsecond().div_euclid(micros);
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    Ok(())
}
