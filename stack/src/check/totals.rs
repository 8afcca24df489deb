//! How many checks passed, and which failed.
//!
//! * A failure is kept with its reason, so that the end of the output says what is red: the place where it was
//!   printed first is thousands of lines above.

use std::fmt;
use std::ops::AddAssign;

use anyhow::Result;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Totals {
    passed: u64,
    failures: Vec<String>,
}

impl Totals {
    /// Many checks; why they could not be made is shown.
    pub fn all(&mut self, result: Result<Self>) {
        match result {
            Ok(totals) => *self += totals,
            Err(error) => self.one(Err(error)),
        }
    }

    /// A check that is one thing; why it failed is shown.
    pub fn one(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                let error = format!("{error:#}");
                eprintln!("{error}");
                self.fails(error);
            }
        }
    }

    pub fn passes(&mut self, checks: u64) {
        self.passed += checks;
    }

    /// A check failed; why was shown already.
    pub fn fails(&mut self, what: String) {
        self.failures.push(what);
    }

    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Each failure, by what failed and why.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_and_what_is_above_it() {
        let mut totals = Totals::default();
        totals.one(Ok(()));
        let mut others = Totals::default();
        others.passes(4);
        others.fails("saga: a test".to_owned());
        totals += others;
        totals.one(Err(anyhow::anyhow!("no disk").context("clippy")));
        assert_eq!(totals.to_string(), "5 passed, 2 failed");
        assert_eq!(totals.failures(), ["saga: a test", "clippy: no disk"]);
    }
}
