//! What is wrong with a routes file: all of it at once, each with its place.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// The span of a value that is not there; what follows from its absence is not worth a line.
pub const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// Collects while the file is read and checked.
#[derive(Debug, Default)]
pub struct Findings {
    found: RefCell<Vec<(usize, String, String)>>,
}

impl Findings {
    /// Notes that the value of `key` at `at` has this problem.
    pub fn add(&self, at: &Range<usize>, key: &str, problem: impl Into<String>) {
        if *at != NOWHERE {
            self.found.borrow_mut().push((at.start, key.to_owned(), problem.into()));
        }
    }

    /// `Err` if there are any; in the order of the file.
    pub fn result(&self, file: &str, text: &str) -> Result<(), InvalidRoutes> {
        let mut found = self.found.take();
        if found.is_empty() {
            return Ok(());
        }
        found.sort();
        found.dedup();
        let place = |(at, key, problem): (usize, String, String)| {
            let before = text.get(..at).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
            let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
            Finding { line, column, key, problem }
        };
        Err(InvalidRoutes { file: file.to_owned(), findings: found.into_iter().map(place).collect() })
    }
}

/// One thing that is wrong. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub line: usize,
    pub column: usize,
    pub key: String,
    pub problem: String,
}

/// A routes file that cannot be used, and everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRoutes {
    pub file: String,
    pub findings: Vec<Finding>,
}

impl fmt::Display for InvalidRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Finding { line, column, key, problem }) in self.findings.iter().enumerate() {
            let lead = if index == 0 { "" } else { "\n" };
            write!(f, "{lead}{}:{line}:{column}: {key}: {problem}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidRoutes {}
