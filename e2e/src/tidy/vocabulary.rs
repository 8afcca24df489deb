//! Refuses private words where the field has a word of its own (docs/GLOSSARY.md).
//!
//! * Names: identifiers, file names, flags, metrics and names in JSON, in all crates, their tests included.
//! * Prose: comments, texts and documents of the relay do not tell, and nobody hears.
//! * An exception names its file, its word and its reason, and goes when it is no longer needed.

use std::path::Path;

use super::lexer::{Kind, tokens};
use super::sources;

/// Words that no name has as a part, each with the field's.
const PARTS: &[(&[&str], &str)] = &[
    (
        &[
            "tell",
            "tells",
            "telling",
            "tellings",
            "teller",
            "told",
            "untold",
            "untellable",
            "retell",
            "retold",
        ],
        "emit, publish, sent_lsn",
    ),
    (&["hear", "hears", "hearing", "heard", "unheard"], "receive, consume, GatewayReply"),
    (&["remember", "remembers", "remembered", "recall", "recalled", "memories"], "save, load, checkpoint"),
    (&["letter", "letters"], "dead_letter"),
    (&["bury", "buries", "buried", "shelf"], "dead_letter"),
    (&["depart", "departs", "departed"], "added"),
    (&["ticket", "tickets"], "transaction_seq"),
    (&["flight"], "AckWaiter, in_flight"),
    (&["runway"], "slot_trend"),
    (&["patience"], "timeout, interval"),
    (&["whom"], "target"),
    (&["deed", "deeds"], "FaultKind"),
    (&["insist", "insistent"], "retrying client"),
    (&["rig"], "Harness"),
];

/// Pairs in which one of those is right.
const COMPOUNDS: [(&str, &str); 4] =
    [("dead", "letter"), ("dead", "letters"), ("in", "flight"), ("first", "letter")];

/// Parts of a constant that say neither unit nor limit, unless it ends in one.
const CONSTANT_PARTS: [&str; 7] = ["PATIENCE", "LOOK", "SAY", "QUIET", "MOST", "LARGEST", "LONGEST"];

/// Names that no item has, below these folders.
const ITEMS: &[(&str, &[&str], &str)] = &[
    ("", &["Told"], "RowEvent"),
    ("", &["Memory"], "Checkpoint"),
    ("", &["Seen"], "Observed"),
    ("", &["Places"], "Targets"),
    ("", &["Mark"], "Watermark, CommitId"),
    ("", &["Stand"], "SlotStatus"),
    ("", &["Desk"], "ReleaseContext"),
    ("", &["Pace"], "ReadScheduler"),
    ("", &["World", "Trial", "Scene"], "Harness"),
    ("cdc-relay/", &["Position"], "TableProgress, ChainPosition"),
    ("cdc-relay/", &["Place"], "WalPosition, Failpoint"),
    ("cdc-relay/", &["Life"], "SourceWorker"),
    ("cdc-relay/", &["Wiring"], "SourceContext"),
    ("cdc-relay/", &["Trouble"], "AttemptError"),
    ("cdc-relay/", &["Clients"], "KafkaClients"),
    ("cdc-relay/", &["Origin"], "SessionStart"),
    ("cdc-relay/", &["Leftover"], "SessionOutcome"),
    ("cdc-relay/", &["Open"], "OpenTransaction"),
    ("cdc-relay/", &["Outlet"], "the sink itself"),
    ("cdc-relay/", &["Course"], "TableRun"),
    ("cdc-relay/", &["Flight"], "AckWaiter"),
    ("cdc-relay/src/", &["Load"], "BatchSize"),
    ("cdc-relay/", &["reach"], "hit"),
    ("cdc-relay/", &["land", "undo"], "acknowledged, withdrawn"),
    ("cdc-relay/", &["reconcile", "Reconcile", "reconciling"], "resnapshot"),
    ("processor-svc/", &["settled", "Settled"], "ended_cache"),
    ("processor-svc/", &["print"], "fingerprint"),
];

/// Keywords before the name of an item.
const ITEM_KEYWORDS: [&str; 8] = ["struct", "enum", "type", "trait", "fn", "mod", "const", "static"];

/// Names of files, below these folders.
const FILES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "tell", "told", "tellings", "hear", "letter", "letters", "shelf", "places", "seen", "words",
            "edges", "rest", "insist",
        ],
    ),
    ("", &["rig", "world", "trial", "scene", "memory", "runway"]),
    (
        "cdc-relay/src/",
        &["copy", "wire", "database", "encrypted", "present", "made", "history", "reconcile", "flight"],
    ),
    ("processor-svc/src/", &["settled", "watch"]),
];

/// Words of flags, metrics and JSON, wherever a text or a file of the deployment has them.
const PUBLIC_NAMES: [(&str, &str); 6] = [
    ("cdc_relay_memory", "cdc_relay_checkpoint"),
    ("behind_bytes", "lag_bytes"),
    ("told_again", "re_emitted"),
    ("pass-over", "--skip"),
    ("pass_over", "skip"),
    ("untold", "failed"),
];

/// Words that the relay's prose and the documents do without.
const PROSE: [&str; 13] = [
    "tell",
    "tells",
    "telling",
    "told",
    "untold",
    "untellable",
    "retell",
    "retells",
    "retold",
    "hear",
    "hears",
    "hearing",
    "heard",
];

/// Where a refused word stays: path (or its beginning), word, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("coroctl/tests/audit/brokers.rs", "told", STATE_RECORD),
    ("e2e/src/bench/relay/engine.rs", "told", STATE_RECORD),
    ("cdc-relay/src/checkpoint/state.rs", "told", STATE_RECORD),
    ("cdc-relay/tests/it/resnapshot.rs", "told", STATE_RECORD),
    (
        "cdc-relay/src/dead_letter/release.rs",
        "told",
        "orders that are in WAL or on the dead-letter topic keep their names",
    ),
    (
        "cdc-relay/src/dead_letter/release.rs",
        "pass_over",
        "orders that are in WAL or on the dead-letter topic keep their names",
    ),
    ("cdc-relay/src/commands/cli.rs", "pass-over", "a test that the former flag is refused"),
    (
        "cdc-relay/src/commands/tail/trial.rs",
        "trial",
        "the slot and publication of a trial, not a test's surroundings",
    ),
    ("cdc-relay/src/postgres/sql.rs", "letter", "a letter of the alphabet"),
    ("stack/tests/prometheus.rs", "ticket", SEVERITY),
    ("stack/tests/alertmanager.rs", "ticket", SEVERITY),
];
const SEVERITY: &str = "a severity of alerts, as those who route them call it";
const STATE_RECORD: &str = "records that are on the state topic already keep their names";

/// Files that hold the words themselves.
const LIST: &str = "e2e/src/tidy/vocabulary.rs";

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    word: String,
    what: String,
}

/// The words of a name in lower case, by case and underscore.
fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut before_upper = true;
    for character in name.chars() {
        let upper = character.is_uppercase();
        if !character.is_alphanumeric() || (upper && !before_upper) {
            parts.push(String::new());
        }
        before_upper = upper || !character.is_alphanumeric();
        if character.is_alphanumeric() {
            if parts.is_empty() {
                parts.push(String::new());
            }
            if let Some(last) = parts.last_mut() {
                last.extend(character.to_lowercase());
            }
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// The refused part of a name, with the field's word.
fn refused_part(name: &str) -> Option<(String, &'static str)> {
    let parts = parts(name);
    parts.iter().enumerate().find_map(|(at, part)| {
        let before = at.checked_sub(1).map_or("", |before| parts[before].as_str());
        if COMPOUNDS.contains(&(before, part.as_str())) {
            return None;
        }
        let (_, instead) = PARTS.iter().find(|(words, _)| words.contains(&part.as_str()))?;
        Some((part.clone(), *instead))
    })
}

fn ends_in_a_limit(constant: &str) -> bool {
    ["_TIMEOUT", "_INTERVAL", "_MAX", "_MIN"].iter().any(|end| constant.ends_with(end))
}

/// The refused word of an identifier, with the field's. `before` is the token before it.
fn refused_identifier(path: &str, before: &str, name: &str) -> Option<(String, &'static str)> {
    let constant = name.len() > 1 && !name.contains(|c: char| c.is_lowercase()) && !ends_in_a_limit(name);
    if let Some(part) = name.split('_').find(|part| constant && CONSTANT_PARTS.contains(part)) {
        return Some((part.to_owned(), "…_TIMEOUT, …_INTERVAL, …_MAX"));
    }
    let is_item = ITEM_KEYWORDS.contains(&before);
    let whole =
        ITEMS.iter().find(|(folder, names, _)| is_item && path.starts_with(folder) && names.contains(&name));
    whole.map(|(.., instead)| (name.to_owned(), *instead)).or_else(|| refused_part(name))
}

/// Names inside a text: the text itself if it is one, and the names of JSON.
fn names_in(text: &str) -> Vec<&str> {
    let is_name = |text: &str| {
        let inner = text.trim_start_matches('-');
        inner.starts_with(|c: char| c.is_ascii_lowercase())
            && inner.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    let mut names: Vec<&str> = Vec::new();
    if is_name(text) {
        names.push(text);
    }
    // `"name":`, its quotes escaped or not.
    for (at, _) in text.match_indices("\":") {
        let before = text[..at].trim_end_matches('\\');
        let name = before.rsplit('"').next().unwrap_or_default();
        if is_name(name) {
            names.push(name);
        }
    }
    names
}

/// The refused words of a sentence.
fn prose_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| PROSE.contains(&word.to_lowercase().as_str()))
}

fn of_source(path: &str, source: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut refuse = |line: usize, word: &str, what: String| {
        found.push(Violation { path: path.to_owned(), line, word: word.to_owned(), what });
    };
    let is_relay = path.starts_with("cdc-relay/");
    let mut before = "";
    for token in tokens(source) {
        match token.kind {
            Kind::Name => {
                if let Some((word, instead)) = refused_identifier(path, before, token.text) {
                    refuse(token.line, &word, format!("`{}`: {instead}", token.text));
                }
            }
            Kind::Text => {
                for name in names_in(token.text) {
                    if let Some((word, instead)) = refused_part(name) {
                        refuse(token.line, &word, format!("\"{name}\": {instead}"));
                    }
                }
                for (name, instead) in PUBLIC_NAMES.iter().filter(|(name, _)| token.text.contains(name)) {
                    refuse(token.line, name, format!("{name} in a text: {instead}"));
                }
            }
            Kind::Comment | Kind::Punctuation => {}
        }
        let is_prose =
            token.kind == Kind::Comment || token.kind == Kind::Text && names_in(token.text).is_empty();
        if is_relay && is_prose {
            for word in prose_in(token.text) {
                refuse(token.line, word, format!("“{word}” in prose"));
            }
        }
        before = token.text;
    }
    found
}

/// The violations of a document or of a file of the deployment.
fn of_document(path: &str, text: &str, prose: bool) -> Vec<Violation> {
    let mut found = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let names = PUBLIC_NAMES.iter().filter(|(name, _)| content.contains(name));
        let words = names.map(|(name, instead)| (*name, format!("{name}: {instead}")));
        let prose = prose_in(content).filter(|_| prose).map(|word| (word, format!("“{word}” in prose")));
        for (word, what) in words.chain(prose) {
            found.push(Violation { path: path.to_owned(), line, word: word.to_owned(), what });
        }
    }
    found
}

fn of_file_name(path: &str) -> Option<Violation> {
    let stem = Path::new(path).file_stem()?.to_str()?;
    let (_, _) = FILES.iter().find(|(folder, stems)| path.starts_with(folder) && stems.contains(&stem))?;
    Some(Violation {
        path: path.to_owned(),
        line: 0,
        word: stem.to_owned(),
        what: format!("a file called {stem}"),
    })
}

fn violations() -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in sources("rs") {
        if path != LIST {
            found.extend(of_source(&path, &text));
            found.extend(of_file_name(&path));
        }
    }
    for (path, text) in sources("md") {
        // A change log names what was renamed.
        if path != "CHANGELOG.md" {
            found.extend(of_document(&path, &text, true));
        }
    }
    for extension in ["yml", "json", "toml"] {
        for (path, text) in sources(extension) {
            found.extend(of_document(&path, &text, path.starts_with("cdc-relay/")));
        }
    }
    found
}

#[test]
fn names_and_the_relays_prose_use_the_fields_words() {
    let excepted = |violation: &Violation| {
        EXCEPTIONS.iter().position(|(path, word, _)| {
            violation.path.starts_with(path) && violation.word.eq_ignore_ascii_case(word)
        })
    };
    let mut used = vec![false; EXCEPTIONS.len()];
    let mut wrong = Vec::new();
    for violation in violations() {
        match excepted(&violation) {
            Some(exception) => used[exception] = true,
            None => wrong.push(format!("{}:{}: {}", violation.path, violation.line, violation.what)),
        }
    }
    assert!(wrong.is_empty(), "{} names or sentences want another word:\n{}", wrong.len(), wrong.join("\n"));
    for ((path, word, _), used) in EXCEPTIONS.iter().zip(used) {
        assert!(used, "{path} needs no exception for {word} any more");
    }
}

#[test]
fn private_words_are_found_wherever_they_stand() {
    let words = |path: &str, source: &str| -> Vec<String> {
        of_source(path, source).into_iter().map(|violation| violation.word).collect()
    };
    let source = "fn retold_at(x: TellRows) { json!({\"told_by\": 1}); arg(\"--untold-rows\"); const QUIET_FOR: u8; QUIET_INTERVAL }";
    assert_eq!(words("saga/src/x.rs", source), ["retold", "tell", "told", "untold", "untold", "QUIET"]);
    assert_eq!(words("saga/src/x.rs", "let dead_letter = in_flight; // told"), Vec::<String>::new());
    assert_eq!(words("cdc-relay/src/x.rs", "// It is told.\nerror(\"the row was Told\")"), ["told", "Told"]);
    assert_eq!(
        words("e2e/src/x.rs", r#"let x = r"{\"told\":1}"; let y = "{\"heard\":1}";"#),
        ["told", "heard"]
    );
    assert_eq!(words("cdc-relay/src/x.rs", "struct Wiring; fn undo() {}"), ["Wiring", "undo"]);
    assert_eq!(words("e2e/src/x.rs", "struct Wiring; fn undo() {}"), Vec::<String>::new());
    assert!(
        of_file_name("cdc-relay/src/postgres/copy.rs").is_some() && of_file_name("e2e/src/copy.rs").is_none()
    );
    assert_eq!(of_document("docs/x.md", "the relay tells\ncdc_relay_memory_writes_total", true).len(), 2);
}
