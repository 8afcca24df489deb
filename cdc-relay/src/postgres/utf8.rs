//! Turns the server's text into UTF-8.
//!
//! * Only one type prints anything else: `"char"`. Servers before 15 print its values above 0x7F as raw bytes, inside of arrays
//!   and composite types too.
//! * Such a byte becomes a backslash and three octal digits (`\351`), as 15 and later print it, in keys, headers, bodies, dead
//!   letters and messages.
//! * Everything that the relay writes is UTF-8.

use std::borrow::Cow;

/// Appends the server's text.
#[inline]
pub fn append(text: &[u8], out: &mut Vec<u8>) {
    if is_valid(text) {
        out.extend_from_slice(text);
    } else {
        replace(text, b"\\", out);
    }
}

fn replace(text: &[u8], backslash: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        for &byte in chunk.invalid() {
            let digit = |shift: u8| b'0' + (byte >> shift & 7);
            out.extend_from_slice(backslash);
            out.extend_from_slice(&[digit(6), digit(3), digit(0)]);
        }
    }
}

/// The server's text as a string.
pub fn owned(text: &[u8]) -> String {
    as_string(text, b"\\").into_owned()
}

/// JSON of an older relay, whose strings may contain raw bytes.
pub fn json(text: &[u8]) -> Cow<'_, str> {
    as_string(text, b"\\\\")
}

fn as_string<'t>(text: &'t [u8], backslash: &[u8]) -> Cow<'t, str> {
    if let Ok(text) = std::str::from_utf8(text) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    replace(text, backslash, &mut out);
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[inline]
pub fn is_valid(text: &[u8]) -> bool {
    text.is_ascii() || std::str::from_utf8(text).is_ok()
}

/// The byte that octal digits stand for.
pub fn byte(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [b'\\', high @ b'2'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7'] => {
            Some((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_outside_utf_8_become_octal_digits_and_all_others_stay() {
        let cases: [(&[u8], &str); 6] = [
            (b"", ""),
            (b"a\\b", "a\\b"),
            ("é".as_bytes(), "é"),
            (b"\xe9", r"\351"),
            (b"(\xff,\xc3\xa9)", r"(\377,é)"),
            // The beginning of a sequence that does not end.
            (b"\xe2\x82x", r"\342\202x"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(owned(bytes), expected);
            assert_eq!(is_valid(bytes), owned(bytes).as_bytes() == bytes);
        }
    }

    #[test]
    fn a_byte_comes_back() {
        for each in 0x80..=0xFFu8 {
            assert_eq!(byte(&owned(&[each])), Some(each));
        }
        for other in ["", "\\", r"\1", r"\151", r"\451", r"\388", r"\351x", "351é"] {
            assert_eq!(byte(other), None, "{other}");
        }
    }
}
