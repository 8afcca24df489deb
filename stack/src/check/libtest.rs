//! Reads what a test program of Rust prints: how many tests passed, which failed, and where each panicked.
//!
//! * A program that ends before it has counted (a signal, an `exit`) has failed; its last line is kept.
//! * One that hangs has failed in each test that libtest has called slow and that has not ended.

use std::process::ExitStatus;
use std::time::Duration;

use super::totals::Totals;

/// Characters of a line that are kept: the message of a panic may be a whole table.
const LINE_MAX: usize = 300;

/// What has been read of one program's output.
#[derive(Default)]
pub struct Reader {
    passed: u64,
    /// By the program's own count.
    failed_count: usize,
    /// Those whose names were read.
    failed: Vec<Failure>,
    counted: bool,
    /// The last line that was not empty.
    last: String,
    /// The tests that have run for a minute and have not ended.
    slow: Vec<String>,
    /// It was ended after so long without a line.
    silence: Option<Duration>,
    /// The failed test whose output follows.
    shown: Option<usize>,
    /// The next line is the message of that test's panic.
    message_follows: bool,
}

struct Failure {
    test: String,
    place: String,
    message: String,
}

impl Reader {
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if !line.is_empty() {
            self.last = line.chars().take(LINE_MAX).collect();
        }
        if std::mem::take(&mut self.message_follows) {
            self.message();
        } else if let Some((passed, failed)) = counts(line) {
            self.passed += passed;
            self.failed_count += failed;
            self.counted = true;
        } else if let Some(test) = between(line, "test ", " has been running for over 60 seconds") {
            self.slow.push(test.to_owned());
        } else if let Some(test) = between(line, "test ", " ... ok") {
            self.slow.retain(|slow| slow != test);
        } else if let Some(test) = between(line, "test ", " ... FAILED") {
            self.slow.retain(|slow| slow != test);
            let (place, message) = (String::new(), String::new());
            self.failed.push(Failure { test: test.to_owned(), place, message });
        } else if let Some(test) = between(line, "---- ", " stdout ----") {
            self.shown = self.failed.iter().position(|failure| failure.test == test);
        } else if let Some((_, place)) =
            between(line, "thread '", ":").and_then(|it| it.split_once(" panicked at "))
        {
            self.panicked(place);
        }
    }

    /// It printed nothing for so long, and was ended.
    pub fn hung(&mut self, silence: Duration) {
        self.silence = Some(silence);
    }

    /// The first panic of a test is the reason; those after it come from its end.
    fn panicked(&mut self, place: &str) {
        let failure = self.shown.and_then(|index| self.failed.get_mut(index));
        if let Some(failure) = failure.filter(|failure| failure.place.is_empty()) {
            place.clone_into(&mut failure.place);
            self.message_follows = true;
        }
    }

    fn message(&mut self) {
        if let Some(failure) = self.shown.and_then(|index| self.failed.get_mut(index)) {
            failure.message.clone_from(&self.last);
        }
    }

    /// The program's totals; `name` is the program's.
    pub fn totals(self, name: &str, status: ExitStatus) -> Totals {
        let mut totals = Totals::default();
        totals.passes(self.passed);
        for Failure { test, place, message } in self.failed {
            totals.fails(format!("{name}: {test}\n    {place}\n    {message}"));
        }
        // Something else was printed into the middle of their lines.
        for _ in totals.failed()..self.failed_count {
            totals.fails(format!("{name}: a test whose name was not read"));
        }
        if let Some(silence) = self.silence {
            let slow = if self.slow.is_empty() { "a test".to_owned() } else { self.slow.join(", ") };
            let after = silence.as_secs_f64();
            totals.fails(format!("{name}: {slow}: hung, and was ended after {after:.0} s without a line"));
        } else if !self.counted || (!status.success() && totals.failed() == 0) {
            totals.fails(format!("{name}: ended with {status}; its last line: {}", self.last));
        }
        totals
    }
}

fn between<'a>(line: &'a str, prefix: &str, suffix: &str) -> Option<&'a str> {
    line.strip_prefix(prefix)?.strip_suffix(suffix)
}

/// How many tests passed and failed, by a result line of libtest; nothing for any other line.
fn counts(line: &str) -> Option<(u64, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what));
    Some((count(" passed")?.trim().parse().ok()?, count(" failed")?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn read(output: &str, status: i32) -> Totals {
        let mut reader = Reader::default();
        output.lines().for_each(|line| reader.line(line));
        reader.totals("saga it", ExitStatus::from_raw(status))
    }

    #[test]
    fn result_lines_of_libtest() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s";
        assert_eq!(counts(ok), Some((12, 0)));
        let bad = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(counts(bad), Some((3, 2)));
        for other in ["test a ... ok", "running 3 tests", "", "test result: ok", "3 passed; 2 failed"] {
            assert_eq!(counts(other), None, "{other}");
        }
    }

    #[test]
    fn a_failed_test_is_named_with_its_first_panic() {
        let output = "running 2 tests\ntest a::holds ... ok\ntest a::breaks ... FAILED\n\nfailures:\n\n\
            ---- a::breaks stdout ----\nlog line\n\nthread 'a::breaks' (7) panicked at saga/tests/it/a.rs:68:13:\n\
            a search found 0 of 1000\nnote: run with\nthread 'a::breaks' (7) panicked at b.rs:1:1:\nin the end\n\n\
            failures:\n    a::breaks\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        let totals = read(output, 101 << 8);
        assert_eq!(totals.to_string(), "1 passed, 1 failed");
        let expected = "saga it: a::breaks\n    saga/tests/it/a.rs:68:13\n    a search found 0 of 1000";
        assert_eq!(totals.failures(), [expected]);
        // A process of the test printed before the result did.
        let torn = output.replace("test a::holds ... ok", "test b::breaks ... started\nFAILED");
        let torn = torn.replace("1 passed; 1 failed", "0 passed; 2 failed");
        assert_eq!(read(&torn, 101 << 8).to_string(), "0 passed, 2 failed");
    }

    #[test]
    fn a_program_that_ends_before_it_counts_has_failed() {
        let output = "running 2 tests\ntest a::holds ... ok\ntest a::ends ... \n";
        let totals = read(output, 9);
        assert_eq!(totals.to_string(), "0 passed, 1 failed");
        let failure = &totals.failures()[0];
        assert!(failure.contains("signal: 9") && failure.contains("a::ends"), "{failure}");
        assert_eq!(read("", 0).failed(), 1, "an exit without a result");
        let leaks =
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        assert_eq!(read(leaks, 0).to_string(), "3 passed, 0 failed");
        assert_eq!(read(leaks, 1 << 8).to_string(), "3 passed, 1 failed", "it counted, and ended badly");
    }
}
