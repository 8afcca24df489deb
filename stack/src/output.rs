//! Terminal output: steps with their seconds on stderr, results on stdout.
//!
//! * A terminal shows a spinner for each step under way, and what it does just now.
//! * A pipe gets one line per finished step, and a line every [`REPORT_INTERVAL`] about a step that takes longer.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::{OwoColorize, Stream::Stderr};

/// Several steps may be under way at once, from several threads.
#[derive(Clone)]
pub struct Progress {
    bars: Arc<MultiProgress>,
    terminal: bool,
}

/// A pipe gets a line about a step under way this often: a reader of CI's output should not take it for dead.
const REPORT_INTERVAL: Duration = Duration::from_secs(8);

/// One step under way.
pub struct Step {
    bar: ProgressBar,
    message: Arc<Mutex<String>>,
}

impl Step {
    fn new(bar: ProgressBar) -> Self {
        Self { bar, message: Arc::default() }
    }

    /// One that nobody watches.
    pub fn silent() -> Self {
        Self::new(ProgressBar::hidden())
    }

    /// Shows the present action: at once on a terminal, with the next report in a pipe.
    pub fn now(&self, message: impl Into<String>) {
        let mut message: String = message.into();
        message.truncate(message.char_indices().nth(70).map_or(message.len(), |(at, _)| at));
        self.message.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&message);
        self.bar.set_message(message);
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self { bars: Arc::new(MultiProgress::new()), terminal: std::io::stderr().is_terminal() }
    }
}

impl Progress {
    /// Runs a step and says how it went. The step returns what to say of its result (may be empty).
    ///
    /// # Errors
    /// The step's own.
    pub fn step(&self, name: &str, work: impl FnOnce(&Step) -> Result<String>) -> Result<()> {
        let began = Instant::now();
        let bar = self.bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix:14} {elapsed:>4} {msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        let step = Step::new(bar);
        let result = if self.terminal { work(&step) } else { reporting(name, began, &step, work) };
        step.bar.finish_and_clear();
        self.bars.remove(&step.bar);
        let seconds = began.elapsed().as_secs_f64();
        match &result {
            Ok(said) => {
                let mark = "✓".if_supports_color(Stderr, |text| text.green()).to_string();
                self.line(&format!("  {mark} {name:<14} {seconds:>6.1} s  {said}"));
            }
            Err(_) => {
                let mark = "✗".if_supports_color(Stderr, |text| text.red()).to_string();
                self.line(&format!("  {mark} {name:<14} {seconds:>6.1} s"));
            }
        }
        result.map(|_| ())
    }

    /// A line that spinners do not overwrite.
    pub fn line(&self, text: &str) {
        if !self.terminal || self.bars.println(text).is_err() {
            eprintln!("{text}");
        }
    }
}

/// Runs a step, and says every [`REPORT_INTERVAL`] on stderr what it is doing.
fn reporting<T>(name: &str, began: Instant, step: &Step, work: impl FnOnce(&Step) -> T) -> T {
    let (finished, running) = mpsc::channel::<()>();
    let message = Arc::clone(&step.message);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while running.recv_timeout(REPORT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let message = message.lock().unwrap_or_else(PoisonError::into_inner).clone();
                eprintln!("    {name:<14} {:>6.0} s  {message}", began.elapsed().as_secs_f64());
            }
        });
        let result = work(step);
        drop(finished);
        result
    })
}

/// Prints a result. A reader that went away (`| head`) is no error.
pub fn say(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}
