//! Each program takes its secrets from files too, and says which setting is wrong, never what it holds.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::harness;

/// Programs with their arguments, and the settings that hold secrets of each.
const SECRETS: [(&str, &[&str], &[&str]); 10] = [
    ("payments-svc", &[], &["DATABASE_URL", "ADMIN_TOKEN", "SEARCH_URL"]),
    ("balance-svc", &[], &["DATABASE_URL", "ADMIN_TOKEN"]),
    ("processor-svc", &[], &["DATABASE_URL", "AMQP_URL", "REDIS_URL", "WEBHOOK_SECRET", "ADMIN_TOKEN"]),
    ("cdc-relay", &["run"], &["AMQP_URL", "PAYMENTS_RELAY_URL", "BALANCE_RELAY_URL", "PROCESSOR_RELAY_URL"]),
    ("search-indexer", &[], &["SEARCH_URL", "ADMIN_TOKEN"]),
    ("notifier", &[], &["DATABASE_URL", "SMTP_URL", "ADMIN_TOKEN"]),
    ("fraud", &[], &["DATABASE_URL", "ADMIN_TOKEN"]),
    ("migrate", &[], &["ADMIN_DATABASE_URL", "PAYMENTS_SVC_PASSWORD", "CORO_CHECKER_PASSWORD"]),
    ("gateway-sim", &[], &["WEBHOOK_SECRET", "ADMIN_TOKEN"]),
    ("coroctl", &["audit"], &["PAYMENTS_DATABASE_URL", "AMQP_URL", "SEARCH_URL"]),
];

/// Settings without which a program would end before it reads the others. None of them leads anywhere.
const REST: [(&str, &str); 14] = [
    ("LISTEN_ADDR", "127.0.0.1:1"),
    ("ADMIN_ADDR", "127.0.0.1:1"),
    ("KAFKA_BROKERS", "127.0.0.1:1"),
    ("GATEWAY_URL", "http://127.0.0.1:1"),
    ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
    ("REDIS_URL", "redis://127.0.0.1:1"),
    ("AMQP_URL", "amqp://127.0.0.1:1"),
    ("PAYMENTS_RELAY_URL", "postgres://u:p@127.0.0.1:1/d"),
    ("BALANCE_RELAY_URL", "postgres://u:p@127.0.0.1:1/d"),
    ("PROCESSOR_RELAY_URL", "postgres://u:p@127.0.0.1:1/d"),
    ("ADMIN_DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
    ("PAYMENTS_SVC_PASSWORD", "1"),
    ("CORO_CHECKER_PASSWORD", "2"),
    ("NO_COLOR", "1"),
];

const SECRET: &str = "postgres://swordfish:swordfish-0123456789@127.0.0.1:1/d";

/// Runs a program with these settings beside the rest, in an environment that has nothing else.
fn run(program: &str, arguments: &[&str], without: &str, settings: &[(&str, &str)]) -> Output {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(harness::binary(program));
    command.args(arguments).env_clear().env("RELAY_ROUTES", root.join("cdc-relay/relay.toml"));
    command.envs(REST.into_iter().filter(|(name, _)| *name != without)).envs(settings.iter().copied());
    command.output().unwrap()
}

#[test]
fn a_secret_that_is_given_twice_or_cannot_be_read_ends_every_program() {
    let file = std::env::temp_dir().join(format!("e2e-secret-{}", std::process::id()));
    std::fs::write(&file, SECRET).unwrap();
    let file = file.display().to_string();
    for (program, arguments, secrets) in SECRETS {
        // As the exit codes of the audit say, it could not be made.
        let code = if program == "coroctl" { 2 } else { 64 };
        for secret in secrets {
            let by_file = format!("{secret}_FILE");
            let twice = run(program, arguments, secret, &[(secret, SECRET), (&by_file, &file)]);
            let unread = run(program, arguments, secret, &[(&by_file, "/nowhere")]);
            for (output, words) in [
                (twice, format!("{secret} and {by_file} are both set")),
                (unread, format!("{by_file}: cannot read /nowhere")),
            ] {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains(&words), "{program} {secret}: {said}");
                assert!(!said.contains("swordfish"), "{program} {secret} shows it: {said}");
                assert_eq!(output.status.code(), Some(code), "{program} {secret}: {said}");
            }
        }
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_secret_that_is_not_usable_is_not_shown_whoever_holds_it() {
    let file = std::env::temp_dir().join(format!("e2e-secret-bad-{}", std::process::id()));
    std::fs::write(&file, "swordfish and chips").unwrap();
    let path = file.display().to_string();
    // A deployment's file may name a variable that nobody sets.
    let empty = run("cdc-relay", &["run"], "AMQP_URL", &[("AMQP_URL", "")]);
    let said = String::from_utf8_lossy(&empty.stderr).into_owned();
    assert!(said.contains("AMQP_URL is not set"), "{said}");
    let programs: [(&str, &[&str], &str); 4] = [
        ("processor-svc", &[], "REDIS_URL"),
        ("processor-svc", &[], "AMQP_URL"),
        ("cdc-relay", &["run"], "AMQP_URL"),
        ("fraud", &[], "ADMIN_TOKEN"),
    ];
    for (program, arguments, secret) in programs {
        let by_file = (format!("{secret}_FILE"), path.as_str());
        for (name, value) in [by_file, (secret.to_owned(), "swordfish and chips")] {
            let output = run(program, arguments, secret, &[(&name, value)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(64), "{program} {name}: {said}");
            assert!(!said.contains("swordfish"), "{program} {name}: {said}");
            let option = secret.to_lowercase().replace('_', "-");
            assert!(said.contains(&format!("--{option}")), "{program} {name}: {said}");
        }
    }
    std::fs::remove_file(file).unwrap();
}
