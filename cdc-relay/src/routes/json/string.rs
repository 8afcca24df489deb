//! Writes JSON strings.
//!
//! * Runs without an escape are copied whole, found eight bytes at a time.
//! * Bytes that are no UTF-8 become octal escapes first (`postgres::utf8`).

use crate::postgres::utf8;

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

/// The first byte below 0x20, quote or backslash. Tests eight bytes at a time for zero bytes in the differences.
#[inline]
pub fn first_special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let has_zero = |chunk: u64| chunk.wrapping_sub(ONES) & !chunk;
    let (chunks, tail) = text.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let chunk = u64::from_le_bytes(*chunk);
        let below = chunk.wrapping_sub(ONES * 0x20) & !chunk;
        let quote = has_zero(chunk ^ (ONES * u64::from(b'"')));
        let slash = has_zero(chunk ^ (ONES * u64::from(b'\\')));
        if (below | quote | slash) & HIGH != 0 {
            let start = index * 8;
            // A borrow can raise a false alarm above the first hit, never below it; look again byte by byte.
            if let Some(at) = text[start..start + 8].iter().position(is_special) {
                return Some(start + at);
            }
        }
    }
    let start = chunks.len() * 8;
    tail.iter().position(is_special).map(|at| start + at)
}

fn is_special(byte: &u8) -> bool {
    *byte < 0x20 || *byte == b'"' || *byte == b'\\'
}
