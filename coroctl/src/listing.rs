//! Tables for people.

use comfy_table::{Table, presets};
use jiff::Timestamp;

/// A table without lines, its columns as wide as their content, so that ids can be copied.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// As [`table`], with a last column that names the shard of each row, where any has one.
pub fn located<'a, const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = (Option<&'a str>, [String; N])>,
) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    if rows.iter().all(|(shard, _)| shard.is_none()) {
        return table(header, rows.into_iter().map(|(_, row)| row));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.into_iter().chain(["SHARD"]));
    for (shard, row) in rows {
        table.add_row(row.into_iter().chain([optional(shard)]));
    }
    table.trim_fmt()
}

/// A time with milliseconds, in UTC.
pub fn time(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// A text of at most `chars_max` characters; a longer one ends in an ellipsis.
pub fn short(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A text that may be missing.
pub fn optional(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(short("åäö", 3), "åäö");
        assert_eq!(short("åäö", 2), "åä…");
    }
}
