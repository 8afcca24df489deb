//! What the user sees: steps with their seconds on stderr, results on stdout. Quiet when piped: one line per
//! finished step and no spinners.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
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

/// One step under way.
pub struct Step {
    bar: ProgressBar,
}

impl Step {
    /// One that nobody watches.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// What it is doing just now. Not shown when piped.
    pub fn now(&self, message: impl Into<String>) {
        let mut message: String = message.into();
        message.truncate(message.char_indices().nth(70).map_or(message.len(), |(at, _)| at));
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
        let step = Step { bar };
        let result = work(&step);
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

/// Prints a result. A reader that went away (`| head`) is no error.
pub fn say(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}
