//! How many checks passed and failed.

use std::fmt;
use std::ops::AddAssign;

use anyhow::Result;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    pub passed: u64,
    pub failed: u64,
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
                self.failed += 1;
                eprintln!("{error:#}");
            }
        }
    }

    /// What a result line of libtest says; nothing for any other line.
    pub fn of_line(line: &str) -> Option<Self> {
        let counts = line.trim().strip_prefix("test result: ")?;
        let counts = counts.split_once(". ")?.1;
        let count = |what: &str| {
            counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse::<u64>().ok())
        };
        Some(Self { passed: count(" passed")?, failed: count(" failed")? })
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_libtest() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s";
        assert_eq!(Totals::of_line(ok), Some(Totals { passed: 12, failed: 0 }));
        let bad = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(Totals::of_line(bad), Some(Totals { passed: 3, failed: 2 }));
        for other in ["test a ... ok", "running 3 tests", "", "test result: ok", "3 passed; 2 failed"] {
            assert_eq!(Totals::of_line(other), None, "{other}");
        }
    }

    #[test]
    fn the_closing_line() {
        let mut totals = Totals::default();
        totals.one(Ok(()));
        totals += Totals { passed: 4, failed: 1 };
        totals.one(Err(anyhow::anyhow!("shown")));
        assert_eq!(totals.to_string(), "5 passed, 2 failed");
    }
}
