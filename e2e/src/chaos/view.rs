//! Shows a run while it lasts, on stderr: bars per state on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::board::Counts;

/// Between two lines of counts where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Cheap to clone: each part of a run reports its own faults.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    began: Instant,
    output: Output,
}

enum Output {
    Bars(Box<Bars>),
    /// When the last line was printed.
    Lines(Mutex<Option<Instant>>),
    Nothing,
}

struct Bars {
    all: MultiProgress,
    title: ProgressBar,
    states: [ProgressBar; 8],
}

/// States with their colours, in the order of a payment's life.
const STATES: [(&str, &str); 8] = [
    ("accepted", "white"),
    ("initiated", "blue"),
    ("authorized", "cyan"),
    ("unknown", "yellow"),
    ("completed", "green"),
    ("failed", "red"),
    ("rejected", "red"),
    ("cancelled", "magenta"),
];

impl View {
    /// Bars on a terminal, lines elsewhere.
    pub fn of(payments: usize) -> Self {
        let output = match std::io::stderr().is_terminal() {
            true => Output::Bars(Box::new(Bars::of(payments as u64))),
            false => Output::Lines(Mutex::default()),
        };
        Self(Arc::new(Inner { began: Instant::now(), output }))
    }

    pub fn silent() -> Self {
        Self(Arc::new(Inner { began: Instant::now(), output: Output::Nothing }))
    }

    /// Prints a line about an event of the run.
    pub fn line(&self, text: &str) {
        let line = format!("{:>6.1} s  {text}", self.0.began.elapsed().as_secs_f64());
        match &self.0.output {
            Output::Bars(bars) => drop(bars.all.println(line)),
            Output::Lines(_) => eprintln!("{line}"),
            Output::Nothing => {}
        }
    }

    /// Shows the counts; `None` while the database does not answer.
    pub fn show(&self, accepted: usize, counts: Option<&Counts>) {
        match &self.0.output {
            Output::Bars(bars) => bars.show(accepted as u64, counts),
            Output::Lines(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) {
                    *last = Some(Instant::now());
                    self.line(&counts_line(accepted, counts));
                }
            }
            Output::Nothing => {}
        }
    }

    /// Leaves the bars as they are.
    pub fn finish(&self, accepted: usize, counts: Option<&Counts>) {
        match &self.0.output {
            Output::Bars(bars) => {
                bars.show(accepted as u64, counts);
                bars.title.finish_and_clear();
                bars.states.iter().for_each(ProgressBar::abandon);
                eprintln!();
            }
            Output::Lines(_) => self.line(&counts_line(accepted, counts)),
            Output::Nothing => {}
        }
    }
}

impl Bars {
    fn of(payments: u64) -> Self {
        let all = MultiProgress::new();
        let title = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("\n  {spinner} {elapsed} {msg}") {
            title.set_style(style);
        }
        title.enable_steady_tick(Duration::from_millis(100));
        let states = STATES.map(|(name, colour)| {
            let bar = all.add(ProgressBar::new(payments));
            let template = format!("  {{prefix:<11}} {{bar:50.{colour}}} {{pos:>6}}");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_prefix(name);
            bar
        });
        Self { all, title, states }
    }

    fn show(&self, accepted: u64, counts: Option<&Counts>) {
        let Some(counts) = counts else {
            return self
                .title
                .set_message("the payments database does not answer: clients get 503 and retry");
        };
        self.title.set_message(format!("{} under way", accepted.saturating_sub(counts.ended())));
        for (bar, count) in self.states.iter().zip(numbers(accepted, counts)) {
            bar.set_position(count);
        }
    }
}

/// In the order of [`STATES`].
fn numbers(accepted: u64, counts: &Counts) -> [u64; 8] {
    let Counts { initiated, authorized, unknown, completed, failed, rejected, cancelled } = *counts;
    [accepted, initiated, authorized, unknown, completed, failed, rejected, cancelled]
}

fn counts_line(accepted: usize, counts: Option<&Counts>) -> String {
    let Some(counts) = counts else {
        return format!("accepted {accepted}, the payments database does not answer");
    };
    let numbers = numbers(accepted as u64, counts);
    let counted = STATES.iter().zip(numbers).filter(|(_, count)| *count > 0);
    counted.map(|((name, _), count)| format!("{name} {count}")).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_every_count_that_is_not_zero() {
        let counts = Counts { initiated: 2, completed: 5, ..Counts::default() };
        assert_eq!(counts_line(7, Some(&counts)), "accepted 7  initiated 2  completed 5");
        assert!(counts_line(7, None).contains("does not answer"));
    }
}
