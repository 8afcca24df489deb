//! Prints what a command has found. A reader that went away (`| head`) is no error: whoever opens a database or moves buckets goes on.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::line(format_args!($($text)*))
    };
}

/// Prints a line. [`say`](crate::say) makes it.
pub fn line(text: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        tracing::error!(%error, "a report cannot be written");
    }
}
