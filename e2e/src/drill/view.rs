//! Shows a drill while it lasts, on stderr: what happened at which second, and below it what is waited for.
//!
//! * On a terminal the last line changes in its place. Elsewhere it is printed now and then.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines about what is waited for, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(20);
const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// Cheap to clone.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    began: Instant,
    output: Output,
}

enum Output {
    Terminal(ProgressBar),
    /// When the last line was printed.
    Lines(Mutex<Instant>),
    Nothing,
}

impl View {
    /// It begins now.
    pub fn on_stderr() -> Self {
        let output = match std::io::stderr().is_terminal() {
            true => Output::Terminal(spinner()),
            false => Output::Lines(Mutex::new(Instant::now())),
        };
        Self::with(output)
    }

    pub fn silent() -> Self {
        Self::with(Output::Nothing)
    }

    fn with(output: Output) -> Self {
        Self(Arc::new(Inner { began: Instant::now(), output }))
    }

    /// Prints what has happened, with the seconds since the beginning.
    pub fn line(&self, text: &str) {
        let line = format!("{:>6.1} s  {text}", self.0.began.elapsed().as_secs_f64());
        match &self.0.output {
            Output::Terminal(bar) => bar.println(line),
            Output::Lines(last) => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                eprintln!("{line}");
            }
            Output::Nothing => {}
        }
    }

    /// Prints lines that belong to the one before.
    pub fn below(&self, text: &str) {
        for line in text.lines() {
            let line = format!("            {line}");
            match &self.0.output {
                Output::Terminal(bar) => bar.println(line),
                Output::Lines(_) => eprintln!("{line}"),
                Output::Nothing => {}
            }
        }
    }

    /// Shows what is waited for.
    pub fn wait(&self, text: &str) {
        match &self.0.output {
            Output::Terminal(bar) => bar.set_message(text.to_owned()),
            Output::Lines(last) => {
                let is_due = last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= LINE_INTERVAL;
                if is_due {
                    self.line(text);
                }
            }
            Output::Nothing => {}
        }
    }

    /// Takes away what is waited for.
    pub fn finish(&self) {
        if let Output::Terminal(bar) = &self.0.output {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK_INTERVAL);
    bar
}
