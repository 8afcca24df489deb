//! Compares two states of a routes file: pure.
//!
//! * A source has changed if its own table has, its kind's, or one of the topics and queues. Comments, and the order of sources,
//!   say nothing.
//! * `[relay]` and `[kafka]` are of all sources, and are read at start alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

/// What a routes file says, by source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definitions {
    /// Of all sources; read at start alone.
    shared: String,
    sources: BTreeMap<String, String>,
}

/// The sources that differ between two states of a file, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Definitions {
    /// `names`: the sources in the order of the file, which was checked before.
    pub fn of<'n>(text: &str, names: impl IntoIterator<Item = &'n str>) -> Result<Definitions> {
        let file: Table = text.parse().context("the routes file")?;
        let part = |key: &str| file.get(key).map(Value::to_string).unwrap_or_default();
        let list = |key: &str| file.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let (topics, queues) = (part("topics"), part("queues"));
        let definition = |source: &Value| {
            let kinds = source.get("kind").map(|of| kinds(list("kinds"), of)).unwrap_or_default();
            format!("{source}\n{kinds}\n{topics}\n{queues}")
        };
        let sources = names.into_iter().map(str::to_owned).zip(list("sources").iter().map(definition));
        Ok(Definitions {
            shared: format!("{}\n{}", part("relay"), part("kafka")),
            sources: sources.collect(),
        })
    }

    /// Keeps this source alone.
    pub fn only(&mut self, source: &str) {
        self.sources.retain(|name, _| name == source);
    }

    /// Takes a source out that does not run by what the file says of it. The next state has it as a new one.
    pub fn forget(&mut self, source: &str) {
        self.sources.remove(source);
    }

    /// The way from this state to the next.
    ///
    /// # Errors
    /// When the next state differs in what is read at start alone.
    pub fn changes(&self, next: &Definitions) -> Result<Changes> {
        ensure!(
            self.shared == next.shared,
            "[relay] or [kafka] has changed, which only a start reads: restart the relay, or put it back"
        );
        let mut changes = Changes::default();
        for (name, definition) in &next.sources {
            match self.sources.get(name) {
                None => changes.added.push(name.clone()),
                Some(known) if known != definition => changes.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        let removed = self.sources.keys().filter(|name| !next.sources.contains_key(*name));
        changes.removed = removed.cloned().collect();
        Ok(changes)
    }
}

/// The kind of this name. A name may be an environment variable, which only the reader of the file fills in: where no kind is written
/// alike, it may be any of them.
fn kinds(all: &[Value], of: &Value) -> String {
    let texts = |kinds: &mut dyn Iterator<Item = &Value>| kinds.map(Value::to_string).collect::<String>();
    let named = texts(&mut all.iter().filter(|kind| kind.get("name") == Some(of)));
    if named.is_empty() { texts(&mut all.iter()) } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[relay]
state_topic = "s"
[[topics]]
name = "t"
[[kinds]]
name = "k"
tables = [{ name = "orders" }]
[[sources]]
name = "a"
kind = "k"
url = "${A}"
[[sources]]
name = "b"
url = "${B}"
tables = [{ name = "bills" }]
"#;

    fn of(text: &str) -> Definitions {
        let names: Vec<&str> =
            ["a", "b", "c"].into_iter().filter(|name| text.contains(&format!("name = \"{name}\""))).collect();
        Definitions::of(text, names).expect("TOML")
    }

    fn names(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }

    #[test]
    fn each_change_is_of_the_sources_that_it_is_about() {
        type Row<'a> = (&'a str, &'a str, [&'a [&'a str]; 3]);
        let added = "[[sources]]\nname = \"c\"\nkind = \"k\"\nurl = \"${C}\"\n";
        let table: &[Row<'_>] = &[
            ("\n[relay]", "\n# a word\n[relay]", [&[], &[], &[]]),
            ("url = \"${A}\"", "url = \"${A2}\"", [&[], &["a"], &[]]),
            ("\"orders\"", "\"parcels\"", [&[], &["a"], &[]]),
            ("\"bills\"", "\"notes\"", [&[], &["b"], &[]]),
            ("name = \"t\"", "name = \"u\"", [&[], &["a", "b"], &[]]),
            ("[[sources]]\nname = \"a\"", &format!("{added}[[sources]]\nname = \"a\""), [&["c"], &[], &[]]),
            ("name = \"b\"", "name = \"c\"", [&["c"], &[], &["b"]]),
        ];
        for (from, to, [added, changed, removed]) in table {
            assert!(FILE.contains(from), "{from}");
            // The new source stands before the others, so that the order changes too.
            let text = FILE.replacen(from, to, 1);
            let order: Vec<&str> =
                text.split("[[sources]]").skip(1).filter_map(|part| part.split('"').nth(1)).collect();
            let next = Definitions::of(&text, order).expect("TOML");
            let changes = of(FILE).changes(&next).expect("shared parts");
            let found = [names(&changes.added), names(&changes.changed), names(&changes.removed)];
            assert_eq!(found, [added.to_vec(), changed.to_vec(), removed.to_vec()], "{to}");
        }
    }

    /// The names are compared as they are written, before variables are filled in.
    #[test]
    fn a_kind_whose_name_is_a_variable_is_compared_too() {
        for (from, to) in [("kind = \"k\"", "kind = \"${K}\""), ("name = \"k\"", "name = \"${K}\"")] {
            let before = FILE.replacen(from, to, 1);
            let changes = of(&before).changes(&of(&before.replacen("\"orders\"", "\"parcels\"", 1)));
            assert_eq!(names(&changes.expect("shared parts").changed), ["a"], "{to}");
        }
    }

    #[test]
    fn what_only_a_start_reads_must_not_change() {
        for (from, to) in
            [("state_topic = \"s\"", "state_topic = \"x\""), ("[[topics]]", "[kafka]\nx = \"1\"\n[[topics]]")]
        {
            let error = of(FILE).changes(&of(&FILE.replacen(from, to, 1))).expect_err("it has changed");
            assert!(error.to_string().contains("restart the relay"), "{error}");
        }
    }

    #[test]
    fn a_source_that_could_not_start_is_a_new_one_for_the_next_reading() {
        let mut now = of(FILE);
        now.forget("a");
        let changes = now.changes(&of(FILE)).expect("shared parts");
        assert_eq!(changes, Changes { added: vec!["a".to_owned()], ..Changes::default() });
    }

    #[test]
    fn a_relay_of_one_source_knows_no_other() {
        let (mut now, mut next) = (of(FILE), of(&FILE.replacen("\"bills\"", "\"notes\"", 1)));
        now.only("a");
        next.only("a");
        assert!(now.changes(&next).expect("shared parts").is_empty());
    }
}
