//! Renders the plan or the outcome of `remove` for a terminal.

use std::fmt::Write as _;

use super::{Found, Options};
use crate::commands::doctor::slot::size;
use crate::postgres::shell;

pub fn text(found: &Found, options: &Options) -> String {
    let source = &found.source;
    let mut out = if found.is_nothing() {
        format!("Nothing is left of source {source}.\n")
    } else if found.done {
        format!("Source {source} is removed. These are gone:\n")
    } else {
        format!("Nothing was changed. Of source {source}, these would be removed:\n")
    };
    if found.is_nothing() && found.resembled.is_empty() {
        return out;
    }
    // Writing into a String cannot fail.
    if let Some(slot) = &found.slot {
        let kept = slot
            .retained_bytes
            .map_or_else(String::new, |bytes| format!(", with {} of retained WAL", size(bytes)));
        let _ = writeln!(out, "  slot           {}{kept}", slot.name);
    }
    if let Some(publication) = &found.publication {
        let _ = writeln!(out, "  publication    {publication}");
    }
    if found.records > 0 {
        let _ = writeln!(out, "  state topic    {} records of the source", found.records);
    }
    for topic in &found.topics {
        let _ = writeln!(out, "  topic          {topic}, with all its records");
    }
    if !found.resembled.is_empty() {
        out += "These topics stay. They may have rows of the source, of dropped tables or by a value, or they may be somebody \
                else's.\nTo delete one too, name it:\n";
    }
    for topic in &found.resembled {
        let _ = writeln!(out, "  --topic {}", shell::quote(topic));
    }
    if !options.topics {
        out += "Topics stay; --topics deletes those that only this source leads to.\n";
    }
    if found.done {
        out += "Delete the source from the routes file before a relay starts with that file: it would begin again.\n";
    } else {
        let file = shell::quote(&options.routes.file.to_string_lossy());
        let named: String =
            options.named.iter().map(|topic| format!(" --topic {}", shell::quote(topic))).collect();
        let topics = if options.topics { format!(" --topics{named}") } else { String::new() };
        let name = shell::quote(source);
        let _ = writeln!(out, "To remove it: cdc-relay remove --routes {file} --source {name}{topics} --yes");
    }
    out
}
