//! The `stack` binary, run as `cargo stack …`.

use std::process::ExitCode;

fn main() -> ExitCode {
    stack::cli::main()
}
