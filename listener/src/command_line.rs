//! Reads the configuration of a process before it opens anything.
//!
//! * A bad or missing value ends the process with status 64 and a message that names the option.
//! * The process's cryptography is chosen first: clients that a library makes ask for it.
//! * Options that hide what their variable holds may have their value in a file, and no message shows it (`secret_files`).

use clap::Parser;
use clap::error::ErrorKind;

/// `EX_USAGE` of sysexits.h: the configuration is wrong, restarting will not help.
const EXIT_BAD_CONFIG: i32 = 64;

/// The configuration from flags, environment and files of secrets. Ends the process if it is wrong.
pub fn read<C: Parser>() -> C {
    crate::tls::install_provider();
    secret_files::try_parse().unwrap_or_else(|error| {
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        let _ = error.print();
        std::process::exit(if asked { 0 } else { EXIT_BAD_CONFIG })
    })
}
