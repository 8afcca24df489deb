//! Writes to the terminal, and knows its width and colours.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

/// Columns of a terminal; elsewhere a width that reads well.
pub fn width() -> u16 {
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 { 110 } else { columns.clamp(60, 140) }
}

/// Whether to colour: on a terminal, unless the user wants none (<https://no-color.org>).
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints an answer. A reader that closes the pipe has read enough.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// Prints a notice on standard error. A closed standard error is no reason to end.
pub fn notify(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
