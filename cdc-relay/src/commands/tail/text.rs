//! Changes as text: colours, and values that cannot harm a terminal.

use std::fmt::Write as _;

use owo_colors::Style;

use crate::postgres::decode::pgoutput::Value;
use crate::postgres::decode::relation::Relation;

/// A longer value is cut, so that a change stays a line; JSON has it whole.
const VALUE_CHARS_MAX: usize = 100;

#[derive(Debug, Clone, Copy)]
pub struct Paint {
    pub colour: bool,
}

impl Paint {
    fn put(self, style: Style, text: &str, out: &mut Vec<u8>) {
        if self.colour {
            out.extend_from_slice(style.style(text).to_string().as_bytes());
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }

    pub fn operation(self, name: &str, out: &mut Vec<u8>) {
        let style = match name {
            "insert" => Style::new().green(),
            "update" => Style::new().yellow(),
            _ => Style::new().red(),
        };
        out.extend_from_slice(b"  ");
        self.put(style, &format!("{name:<8}"), out);
    }

    pub fn table(self, relation: &Relation, out: &mut Vec<u8>) {
        let schema = if relation.schema == "public" { "" } else { &relation.schema };
        let dot = if schema.is_empty() { "" } else { "." };
        out.push(b' ');
        self.put(Style::new().bold(), &plain(&format!("{schema}{dot}{}", relation.name)), out);
    }

    pub fn key(self, name: &str, value: &str, out: &mut Vec<u8>) {
        self.pair(Style::new().cyan(), name, value, out);
    }

    pub fn column(self, name: &str, value: &str, out: &mut Vec<u8>) {
        self.pair(Style::new(), name, value, out);
    }

    fn pair(self, style: Style, name: &str, value: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"  ");
        self.put(Style::new().dimmed(), &format!("{}=", plain(name)), out);
        self.put(style, value, out);
    }

    pub fn arrow(self, value: &str, out: &mut Vec<u8>) {
        self.put(Style::new().dimmed(), " → ", out);
        self.put(Style::new().bold(), value, out);
    }

    pub fn faint(self, text: &str, out: &mut Vec<u8>) {
        self.put(Style::new().dimmed(), text, out);
    }

    pub fn warning(self, text: &str, out: &mut Vec<u8>) {
        self.put(Style::new().yellow(), text, out);
    }
}

/// A value on one line: text that could be taken for something else in quotes, long text cut.
pub fn value(value: Value<'_>) -> String {
    let bytes = match value {
        Value::Null => return "null".to_owned(),
        Value::Unchanged => return "(large, unchanged)".to_owned(),
        Value::Binary(bytes) => return format!("({} bytes, binary)", bytes.len()),
        Value::Text(bytes) => bytes,
    };
    let text = String::from_utf8_lossy(bytes);
    let ambiguous = |c: char| c.is_whitespace() || c.is_control() || "\"=→".contains(c);
    // An object or an array shows by itself where it ends.
    let is_json = text.starts_with(['{', '['])
        && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok()
        && !text.contains(char::is_control);
    let quoted =
        !is_json && (text.is_empty() || text == "null" || text.starts_with('(') || text.contains(ambiguous));
    let mut shown: String = plain(&text.chars().take(VALUE_CHARS_MAX).collect::<String>());
    if quoted {
        shown = format!("\"{}\"", shown.replace('"', "\\\""));
    }
    let left = text.chars().skip(VALUE_CHARS_MAX).count();
    if left > 0 {
        // Writing into a String cannot fail.
        let _ = write!(shown, "…(+{left})");
    }
    shown
}

/// Rows are others' text: what would steer the terminal is written as an escape.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Bidirectional marks reorder what stands around them.
        let steers = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if steers {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_steer_the_terminal_nor_pass_for_another() {
        let shown = |text: &str| value(Value::Text(text.as_bytes()));
        for (text, expected) in [
            ("plain", "plain"),
            ("", "\"\""),
            ("null", "\"null\""),
            ("(large, unchanged)", "\"(large, unchanged)\""),
            ("two words", "\"two words\""),
            ("a=b", "\"a=b\""),
            ("x → y", "\"x → y\""),
            ("say \"hi\"", "\"say \\\"hi\\\"\""),
            ("\u{1b}[2J", "\"\\u{1b}[2J\""),
            ("line\nbreak", "\"line\\nbreak\""),
            ("\u{202e}abc", "\\u{202e}abc"),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(value(Value::Null), "null");
        assert_eq!(value(Value::Unchanged), "(large, unchanged)");
        let long = "é".repeat(150);
        assert_eq!(shown(&long), format!("{}…(+50)", "é".repeat(100)));
    }
}
