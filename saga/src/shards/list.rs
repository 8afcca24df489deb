//! The list of the shards of a service: their names and URLs, from the configuration.
//!
//! * `name=url` for each, separated by white space. A URL may have several hosts.
//! * The name stays when the URL changes: the proposal of where buckets should be depends on it ([`placement`](super::placement)).
//! * An error names shards and never a URL, which holds a password.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};

/// Length limit of a name, in characters.
const NAME_CHARS_MAX: usize = 32;

/// A shard of the list.
#[derive(Clone, PartialEq, Eq)]
pub struct ListedShard {
    pub name: String,
    pub url: String,
}

/// Reads a list.
///
/// # Errors
/// When it is empty, an entry is malformed, or a name stands twice.
pub fn parse(text: &str) -> anyhow::Result<Vec<ListedShard>> {
    let mut names = BTreeSet::new();
    let shards: anyhow::Result<Vec<ListedShard>> = text
        .split_whitespace()
        .enumerate()
        .map(|(nth, entry)| {
            let (name, url) = entry
                .split_once('=')
                .filter(|(name, url)| is_name(name) && url.contains("://"))
                .with_context(|| format!("shard {} of the list is no name=url", nth + 1))?;
            ensure!(names.insert(name), "the list of shards has {name} twice");
            Ok(ListedShard { name: name.to_owned(), url: url.to_owned() })
        })
        .collect();
    let shards = shards?;
    ensure!(!shards.is_empty(), "the list of shards is empty");
    Ok(shards)
}

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let shards = parse(text).map_err(|error| error.to_string())?;
        Ok(shards.into_iter().map(|shard| shard.name).collect())
    }

    #[test]
    fn a_list_has_names_and_urls() {
        let text = "one=postgres://u:p@h/d\n  two=postgres://u:p@a:1,b:2/d?sslmode=require\n";
        let shards = parse(text).unwrap();
        assert_eq!(shards[1].name, "two");
        assert_eq!(shards[1].url, "postgres://u:p@a:1,b:2/d?sslmode=require", "a URL has = and , itself");
        assert_eq!(names(text).unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_malformed_list_is_refused_without_its_passwords() {
        for text in [
            "",
            "  \n",
            "postgres://u:secret@h/d",
            "=postgres://u:secret@h/d",
            "One=postgres://u:secret@h/d",
            "one=secret",
            "one=postgres://u:secret@h/d one=postgres://u:secret@i/d",
            "one=postgres://u:secret@h/d two",
            &format!("{}=postgres://u:secret@h/d", "a".repeat(33)),
        ] {
            let error = names(text).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
