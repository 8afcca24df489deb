//! Keeps secrets and personal data from being printed.
//!
//! * An argument that holds a secret hides it: from the help, and from the message about a bad value (`hide_env_values`).
//! * A struct with such an argument does not derive Debug, unless the argument's type hides itself.
//! * Services log errors by `log_text` alone: Postgres quotes rows in its errors.

use super::{SERVICES, sources, without_tests};

/// Parts of the names of arguments that hold secrets: passwords, and URLs with a login.
const SECRET_PARTS: [&str; 7] =
    ["database_url", "amqp_url", "redis_url", "password", "secret", "token", "api_key"];
/// Types whose Debug shows nothing, and the name of a file, which is no secret.
const HIDDEN_TYPES: [&str; 2] = ["Option<Token>", "Token"];
const FILE_SUFFIX: &str = "_file";
const THIS: &str = "e2e/src/tidy/secrets.rs";

/// One field with `#[arg(…)]`, and the derives of its struct.
#[derive(Debug, PartialEq, Eq)]
struct Argument {
    name: String,
    kind: String,
    is_hidden: bool,
    derives_debug: bool,
}

/// The arguments of a file. Attributes and fields stand on lines of their own, as rustfmt writes them.
fn arguments(source: &str) -> Vec<Argument> {
    let (mut found, mut derives_debug, mut attribute) = (Vec::new(), false, None::<String>);
    for line in source.lines().map(str::trim) {
        if let Some(derives) = line.strip_prefix("#[derive(") {
            derives_debug = derives.split([',', ')']).any(|name| name.trim() == "Debug");
        } else if line.starts_with("#[arg(") || attribute.as_ref().is_some_and(|text| !text.ends_with(")]")) {
            attribute.get_or_insert_default().push_str(line);
        } else if let Some((name, kind)) = line.trim_end_matches(',').split_once(": ")
            && let Some(text) = attribute.take()
        {
            let name = name.trim_start_matches("pub ").to_owned();
            let is_hidden = text.contains("hide_env_values = true");
            found.push(Argument { name, kind: kind.to_owned(), is_hidden, derives_debug });
        }
    }
    found
}

fn holds_a_secret(name: &str) -> bool {
    SECRET_PARTS.iter().any(|part| name.contains(part)) && !name.ends_with(FILE_SUFFIX)
}

/// What is wrong with an argument.
fn problem(argument: &Argument) -> Option<&'static str> {
    if holds_a_secret(&argument.name) && !argument.is_hidden {
        return Some("give it hide_env_values");
    }
    let shows_itself = !HIDDEN_TYPES.contains(&argument.kind.as_str());
    (argument.is_hidden && argument.derives_debug && shows_itself)
        .then_some("its struct derives Debug, which prints it")
}

#[test]
fn no_argument_prints_a_secret() {
    let mut hidden = 0;
    // This file has examples of what is refused.
    for (path, text) in sources("rs").into_iter().filter(|(path, _)| path != THIS) {
        for argument in arguments(without_tests(&text)) {
            hidden += usize::from(argument.is_hidden);
            assert_eq!(problem(&argument), None, "{path}: {}", argument.name);
        }
    }
    assert!(hidden >= 8, "only {hidden} arguments hide anything");
}

#[test]
fn a_secret_that_is_shown_is_found() {
    let source = "
        #[derive(Clone, Debug, Args)]
        struct Shown {
            /// A URL.
            #[arg(long, env)]
            pub redis_url: String,
            #[arg(long, env, hide_env_values = true)]
            amqp_url: String,
            #[arg(
                long,
                env,
                hide_env_values = true
            )]
            pub admin_token: Option<Token>,
            #[arg(long, env)]
            pub secret_file: Option<Token>,
            #[arg(long)]
            port: u16,
        }
        #[derive(Args)]
        struct Hidden {
            #[arg(env, hide_env_values = true)]
            database_url: String,
        }";
    let found = arguments(source);
    let problems: Vec<Option<&str>> = found.iter().map(problem).collect();
    let debug = Some("its struct derives Debug, which prints it");
    assert_eq!(problems, [Some("give it hide_env_values"), debug, None, None, None, None]);
}

#[test]
fn services_log_errors_without_values() {
    for (path, text) in sources("rs") {
        let logs =
            path.starts_with("saga/src/") || SERVICES.iter().any(|s| path.starts_with(&format!("{s}/src/")));
        if logs && !path.ends_with("_tests.rs") {
            assert!(
                !without_tests(&text).contains("error:#}"),
                "{path}: log errors by saga::telemetry::log_text"
            );
        }
    }
}
