//! Rules of CONTRIBUTING.md that neither the compiler nor clippy can see, kept by tests.

mod lexer;
mod secrets;
mod structs;
mod vocabulary;

use std::fs;
use std::path::{Path, PathBuf};

const SERVICES: [&str; 3] = ["payments-svc", "balance-svc", "processor-svc"];
/// A file that grows beyond this wants a seam.
const FILE_LINES_MAX: usize = 500;
const MAIN_LINES_MAX: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of ours with this extension: path from the root, and text.
fn sources(extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                let short = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((short, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} files found");
    found
}

/// The part of a file before its tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn files_are_short_and_named_after_what_they_hold() {
    for (path, text) in sources("rs") {
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{path} has {lines} lines; {FILE_LINES_MAX} is the most");
        for word in ["utils", "util", "common", "helpers", "helper", "manager", "misc"] {
            let stem = Path::new(&path).file_stem().unwrap().to_str().unwrap();
            assert!(stem != word, "{path}: say what is in it");
        }
    }
}

/// A line that compiles or is sent to Postgres: neither blank nor a comment.
fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//") && !line.starts_with("--")
}

#[test]
fn subscribers_to_copy_are_short() {
    for (name, lines_max) in [("notifier", 900), ("fraud", 400)] {
        let of_name =
            |path: &str| path.starts_with(&format!("consumers/{name}/src/")) && !path.ends_with("_tests.rs");
        let files = sources("rs").into_iter().filter(|(path, _)| of_name(path));
        let lines: usize =
            files.map(|(_, text)| without_tests(&text).lines().filter(|line| is_code(line)).count()).sum();
        assert!(
            (1..=lines_max).contains(&lines),
            "consumers/{name} has {lines} lines of code without its tests; {lines_max} are the most: what others do \
             the same way belongs into `saga`"
        );
    }
}

#[test]
fn every_service_has_the_same_files_and_a_short_main() {
    for service in SERVICES {
        for file in ["main", "lib", "config", "http", "events", "saga", "store", "metrics"] {
            let path = root().join(service).join("src").join(format!("{file}.rs"));
            assert!(path.is_file(), "{} is missing", path.display());
        }
        let main = fs::read_to_string(root().join(service).join("src/main.rs")).unwrap();
        assert!(main.lines().count() <= MAIN_LINES_MAX, "{service}: wiring belongs in lib.rs");
    }
}

#[test]
fn decisions_are_pure_and_leave_no_pair_out() {
    for service in SERVICES {
        let path = root().join(service).join("src/saga.rs");
        let text = fs::read_to_string(&path).unwrap();
        let code = without_tests(&text);
        for (banned, why) in [
            ("_ =>", "a wildcard hides a pair nobody decided"),
            ("async ", "a decision waits for nothing"),
            ("now()", "a decision has no clock"),
            ("tokio", "a decision does no I/O"),
            ("rand", "a decision leaves nothing to chance"),
        ] {
            assert!(!code.contains(banned), "{}: `{banned}`: {why}", path.display());
        }
    }
}

#[test]
fn all_sql_of_a_service_is_in_its_store() {
    for (path, text) in sources("rs") {
        let service = SERVICES.iter().any(|service| path.starts_with(&format!("{service}/src/")));
        if !service || path.contains("/store") {
            continue;
        }
        let code = without_tests(&text).to_lowercase();
        for sql in [
            "insert into ",
            "delete from ",
            " from payments",
            " from charges",
            " from ledger",
            " from accounts",
        ] {
            assert!(!code.contains(sql), "{path}: `{sql}` belongs in the store");
        }
    }
}

#[test]
fn services_do_not_know_each_other() {
    for service in SERVICES {
        let manifest = fs::read_to_string(root().join(service).join("Cargo.toml")).unwrap();
        for other in
            SERVICES.iter().filter(|other| **other != service).chain(&["cdc-relay", "coroctl", "e2e"])
        {
            assert!(!manifest.contains(&format!("\n{other}")), "{service} depends on {other}");
        }
    }
    let shared = fs::read_to_string(root().join("saga/Cargo.toml")).unwrap();
    assert!(!shared.contains("-svc"), "the shared crate knows no service");
}

#[test]
fn only_the_relay_emits_to_a_broker() {
    // It writes the checkpoint of a copied slot for a measured relay, and measures a producer without a relay.
    const BENCH: &str = "e2e/src/bench/relay/kafka.rs";
    // It produces what nobody may, to see it set aside.
    const DRILL: &str = "e2e/src/drill/poison.rs";
    for (path, text) in sources("rs") {
        let may = path.starts_with("cdc-relay/")
            || path.contains("/tests/")
            || [BENCH, DRILL].contains(&path.as_str());
        if may || path.ends_with("tidy.rs") {
            continue;
        }
        for producer in ["basic_publish", "BaseProducer", "ThreadedProducer", "FutureProducer"] {
            assert!(!text.contains(producer), "{path}: `{producer}`; commit a row and let the relay emit it");
        }
    }
}

#[test]
fn every_table_says_what_it_is_and_every_constraint_has_a_name() {
    for (path, text) in sources("sql") {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if let Some(rest) = line.strip_prefix("create table ") {
                let table = rest.split([' ', '(']).next().unwrap();
                assert!(
                    text.contains(&format!("comment on table {table} is")),
                    "{path}: {table} says not what it is"
                );
            }
            let unnamed =
                ["check (", "primary key (", "unique (", "foreign key ("].iter().any(|c| line.starts_with(c));
            assert!(!unnamed, "{path}:{}: name the constraint, its name is what an error says", number + 1);
        }
    }
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    for (path, text) in sources("rs") {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            let silenced = trimmed.starts_with("#[allow(") || trimmed.starts_with("#![allow(");
            let reasoned = line.contains("reason =")
                || line.contains("//")
                || index > 0 && lines[index - 1].trim_start().starts_with("//");
            assert!(!silenced || reasoned, "{path}:{}: say why", index + 1);
        }
    }
}

/// The folders of `cdc-relay/src`, in the order in which an import may point.
const ROOMS: [&str; 9] = [
    "commands",
    "source",
    "sinks",
    "dead_letter",
    "observe",
    "routes",
    "checkpoint",
    "postgres",
    "failpoints",
];
/// The files beside them: they import nothing of ours, or wire everything.
const BESIDE: [&str; 3] = ["lib", "main", "nearest"];

#[test]
fn an_import_of_the_relay_points_only_down_the_list_of_its_rooms() {
    let rank = |room: &str| ROOMS.iter().position(|name| *name == room);
    let mut looked_at = 0;
    for (path, text) in sources("rs") {
        let Some(inner) = path.strip_prefix("cdc-relay/src/") else { continue };
        let room = inner.split(['/', '.']).next().unwrap();
        let room = room.strip_suffix("_tests").unwrap_or(room);
        let Some(from) = rank(room) else {
            assert!(BESIDE.contains(&room), "{path}: in no room");
            continue;
        };
        // Tests may look at anything.
        if path.ends_with("tests.rs") {
            continue;
        }
        for imported in without_tests(&text).split("crate::").skip(1) {
            let name: String = imported.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(to) = rank(&name) {
                looked_at += 1;
                assert!(to >= from, "{path}: {room} imports {name}, which is above it");
            }
        }
    }
    assert!(looked_at > 100, "only {looked_at} imports were found");
}
