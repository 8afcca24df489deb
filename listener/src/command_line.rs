//! Reads the configuration of a process before it opens anything.
//!
//! * A bad or missing value ends the process with status 64 and a message that names the option.
//! * The process's cryptography is chosen first: clients that a library makes ask for it.
//! * The message shows no secret: the value of an option that hides what its variable holds is left out.
//! * Each such option may have its value in a file instead, which NAME_FILE names (`secret_files`).

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Command, Parser};

/// `EX_USAGE` of sysexits.h: the configuration is wrong, restarting will not help.
const EXIT_BAD_CONFIG: i32 = 64;

/// The configuration from flags, environment and files of secrets. Ends the process if it is wrong.
pub fn read<C: Parser>() -> C {
    crate::tls::install_provider();
    secret_files::try_parse().unwrap_or_else(|error| {
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        let _ = without_secret(error, C::command()).print();
        std::process::exit(if asked { 0 } else { EXIT_BAD_CONFIG })
    })
}

fn without_secret(mut error: Error, mut command: Command) -> Error {
    command.build();
    let secret = |name: &String| {
        command.get_arguments().any(|arg| arg.is_hide_env_values_set() && arg.to_string() == *name)
    };
    if matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(name)) if secret(name)) {
        error.insert(ContextKind::InvalidValue, ContextValue::String("(not shown)".to_owned()));
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(Debug, Parser)]
    struct Config {
        #[arg(long, env = "LISTENER_TEST_SECRET", hide_env_values = true)]
        secret: Option<u16>,
        #[arg(long)]
        port: Option<u16>,
    }

    #[test]
    fn a_bad_value_is_shown_unless_it_is_a_secret() {
        let message = |argument| {
            let error = Config::try_parse_from(["program", argument]).unwrap_err();
            without_secret(error, Config::command()).to_string()
        };
        let secret = message("--secret=swordfish");
        assert!(secret.contains("--secret") && !secret.contains("swordfish"), "{secret}");
        assert!(message("--port=harbour").contains("'harbour' for '--port"));
        assert!(message("--nothing").contains("--nothing"));
    }
}
