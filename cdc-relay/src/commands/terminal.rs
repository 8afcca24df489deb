//! What standard output is: how wide, and whether it has colours.

use std::io::IsTerminal;

/// Columns of a terminal; elsewhere a width that reads well.
pub fn width() -> u16 {
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 { 110 } else { columns.clamp(60, 140) }
}

/// On a terminal, unless the user wants none (<https://no-color.org>).
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
