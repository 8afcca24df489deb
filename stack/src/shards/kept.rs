//! What a stack keeps of its shards. A shard is added in steps, and an `up` that was interrupted goes on by what is kept.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, write_private};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The shards that the stack has, each with a server.
    pub count: usize,
    /// The first ones, which services may know: they have their buckets, or have given up those of their birth. None before the buckets
    /// of a new stack are shared out.
    pub known: usize,
    /// The first ones, to which operators may move buckets: the relay reads them.
    pub introduced: usize,
    /// How many there were at first, when the topics were made.
    pub born: usize,
}

impl Kept {
    /// Of a stack for which nobody asked for shards.
    const ONE: Self = Self { count: 1, known: 1, introduced: 1, born: 1 };

    /// Of a stack without data.
    pub fn new(count: usize) -> Self {
        match count {
            1 => Self::ONE,
            _ => Self { count, known: 0, introduced: 0, born: count },
        }
    }

    pub fn of(layout: &Layout) -> Self {
        fs::read_to_string(layout.shards_file()).ok().and_then(|text| Self::parse(&text)).unwrap_or(Self::ONE)
    }

    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().or_else(|| Self::of_words(text))
    }

    /// As earlier versions kept it: the number, and whether the buckets are shared out.
    fn of_words(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (count, is_distributed) = match words[..] {
            [count] => (count.parse().ok()?, false),
            [count, "distributed"] => (count.parse().ok()?, true),
            _ => return None,
        };
        // Their topics have the partitions of one.
        let (known, born) = if is_distributed { (count, 1) } else { (0, count) };
        Some(Self { count, known, introduced: known, born })
    }

    /// # Errors
    /// When what is kept cannot be understood.
    pub fn ensure_readable(layout: &Layout) -> Result<()> {
        let file = layout.shards_file();
        let text = fs::read_to_string(&file).ok();
        let is_readable = text.is_none_or(|text| Self::parse(&text).is_some());
        ensure!(
            is_readable,
            "{} is not understood: another version of this program wrote it",
            file.display()
        );
        Ok(())
    }

    /// # Errors
    /// When it cannot be kept.
    pub fn keep(self, layout: &Layout) -> Result<()> {
        let file = layout.shards_file();
        if self == Self::ONE {
            return match file.exists() {
                true => fs::remove_file(file).context("cannot forget the number of shards"),
                false => Ok(()),
            };
        }
        write_private(&file, &serde_json::to_string(&self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_earlier_versions_kept_is_understood() {
        assert_eq!(Kept::parse("3"), Some(Kept { count: 3, known: 0, introduced: 0, born: 3 }));
        assert_eq!(Kept::parse("2 distributed\n"), Some(Kept { count: 2, known: 2, introduced: 2, born: 1 }));
        let kept = Kept { count: 3, known: 2, introduced: 1, born: 1 };
        assert_eq!(Kept::parse(&serde_json::to_string(&kept).unwrap()), Some(kept));
        for text in ["two", "", "2 2"] {
            assert_eq!(Kept::parse(text), None, "{text:?}");
        }
    }
}
