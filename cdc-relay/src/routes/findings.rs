//! Collects the mistakes of a routes file.
//!
//! * All are reported at once, in the order of the file, each with line and column.
//! * A mistake that only follows from a missing value is not reported.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// The span of a missing value. A mistake there is dropped, because it follows from the absence.
pub const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// A mistake at a byte of the file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mistake {
    at: usize,
    key: String,
    problem: String,
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub struct Findings {
    found: RefCell<Vec<Mistake>>,
}

impl Findings {
    /// Notes a problem of the value of `key` at `at`.
    pub fn add(&self, at: &Range<usize>, key: &str, problem: impl Into<String>) {
        if *at != NOWHERE {
            let (key, problem) = (key.to_owned(), problem.into());
            self.found.borrow_mut().push(Mistake { at: at.start, key, problem });
        }
    }

    /// `Err` with all mistakes, if there are any.
    pub fn result(&self, file: &str, text: &str) -> Result<(), InvalidRoutes> {
        let mut found = self.found.take();
        if found.is_empty() {
            return Ok(());
        }
        found.sort();
        found.dedup();
        let finding = |Mistake { at, key, problem }: Mistake| {
            let before = text.get(..at).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
            let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
            Finding { line, column, key, problem }
        };
        Err(InvalidRoutes { file: file.to_owned(), findings: found.into_iter().map(finding).collect() })
    }
}

/// One mistake. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub line: usize,
    pub column: usize,
    pub key: String,
    pub problem: String,
}

/// A routes file that cannot be used, with all its mistakes.
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
