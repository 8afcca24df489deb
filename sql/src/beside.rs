//! Reads migrations, and refuses what does not go beside a running system (docs/runbooks/upgrade.md has the rules).
//!
//! * It knows the statements that read or rewrite a whole table under a lock, and those that instances of the release before
//!   cannot live with. It does not know how large a table is, nor what a service reads: a green test is no proof.
//! * A table that the same file creates has no readers yet, so everything may be done to it.
//! * What is refused, and right all the same, has a comment before it that begins with `-- beside:` and says why.
//! * Migrations that were there before this rule are left alone: they are never edited.

use std::collections::BTreeSet;

use crate::Database;

/// The last version of each database that is older than the rule.
fn last_unread(kind: Database) -> u32 {
    match kind {
        Database::Payments => 4,
        Database::Balance => 6,
        Database::Processor => 3,
        Database::Notifier => 1,
        Database::Fraud => 2,
    }
}

/// The comment that says why a statement is right.
const EXCUSE: &str = "beside:";

/// One statement in lower case, without comments, texts and the bodies of functions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Statement {
    words: String,
    is_excused: bool,
}

/// The statements of a migration.
fn statements(text: &str) -> Vec<Statement> {
    let (mut all, mut current) = (Vec::new(), Statement::default());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let (taken, word) = if rest.starts_with("--") {
            let line = rest.lines().next().unwrap_or_default();
            current.is_excused |= line.trim_start_matches(['-', ' ']).starts_with(EXCUSE);
            (line.len(), " ")
        } else if next == '\'' {
            (rest[1..].find('\'').map_or(rest.len(), |end| end + 2), "''")
        } else if let Some(body) = rest.strip_prefix("$$") {
            (body.find("$$").map_or(rest.len(), |end| end + 4), "$$")
        } else {
            (next.len_utf8(), &rest[..next.len_utf8()])
        };
        rest = &rest[taken..];
        if word == ";" {
            all.push(std::mem::take(&mut current));
        } else {
            current.words.push_str(word);
        }
    }
    all.push(current);
    for statement in &mut all {
        statement.words = statement
            .words
            .to_lowercase()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .replace("( ", "(");
    }
    all.retain(|statement| !statement.words.is_empty());
    all
}

/// The text after a beginning, without `if exists`, `if not exists` and `only`.
fn after<'a>(words: &'a str, beginnings: &[&str]) -> Option<&'a str> {
    let mut rest = beginnings.iter().find_map(|beginning| words.strip_prefix(beginning))?;
    for extra in ["if not exists ", "if exists ", "only "] {
        rest = rest.strip_prefix(extra).unwrap_or(rest);
    }
    Some(rest)
}

/// The name that a text begins with.
fn name(text: &str) -> &str {
    text.split([' ', '(', ',']).next().unwrap_or_default()
}

/// The parts of a list, at commas outside of parentheses.
fn parts(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (at, character) in list.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(list[from..].trim());
    parts
}

/// Why a migration is refused, with the statement; nothing if it is not.
fn refusal(text: &str) -> Option<String> {
    let statements = statements(text);
    let created = |statement: &Statement| {
        after(&statement.words, &["create table ", "create unlogged table "])
            .map(|rest| name(rest).to_owned())
    };
    let new: BTreeSet<String> = statements.iter().filter_map(created).collect();
    let is_old = |table: &str| !new.contains(table);
    let later = statements.iter().any(|statement| statement.words.ends_with(" not valid"));
    statements.iter().filter(|statement| !statement.is_excused).find_map(|statement| {
        let words = statement.words.as_str();
        let why = if let Some(rest) = after(words, &["alter table "]) {
            let (table, actions) = rest.split_once(' ').unwrap_or((rest, ""));
            let validates = actions.starts_with("validate constraint ");
            if later && validates {
                Some("validate in a later migration: this one holds the lock of `not valid` until it ends")
            } else {
                parts(actions).into_iter().filter(|_| is_old(table)).find_map(of_action)
            }
        } else {
            of_statement(words, is_old)
        };
        why.map(|why| format!("`{words}`: {why}"))
    })
}

/// Why a statement other than `alter table` is refused.
fn of_statement(words: &str, is_old: impl Fn(&str) -> bool) -> Option<&'static str> {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| words.starts_with(beginning));
    if begins(&["create index ", "create unique index "]) {
        let (_, on) = words.split_once(" on ")?;
        let table = name(on.strip_prefix("only ").unwrap_or(on));
        let is_there = words.contains(" if not exists ");
        return (is_old(table) && !is_there).then_some(
            "writers wait while it is built. Build it before, `concurrently`, and say `if not exists` here",
        );
    }
    if let Some(table) = after(words, &["update ", "delete from "]) {
        return is_old(name(table)).then_some(
            "changes rows of a running system in one transaction: do it in small batches, beside it",
        );
    }
    if begins(&["truncate", "lock ", "vacuum", "cluster", "reindex"]) {
        return Some("keeps everybody off the table");
    }
    if begins(&["drop table ", "drop view ", "drop function ", "drop type ", "drop schema "]) {
        return Some("instances of the release before may use it: a later release removes it");
    }
    let narrows = words.starts_with("alter publication ") && !words.contains(" add table ");
    narrows.then_some("the relay refuses to go on when a publication sends less than before")
}

/// Why an action of `alter table` is refused, on a table that is in use.
fn of_action(action: &str) -> Option<&'static str> {
    const SCANS: &str =
        "reads the table under an exclusive lock: add it `not valid`, and validate it in the next migration";
    const REWRITES: &str =
        "rewrites the table under an exclusive lock: add a column, fill it in batches, change over later";
    const CONTRACTS: &str = "instances of the release before read or write it: a later release removes it";
    let has = |words: &str| format!("{action} ").contains(words);
    let is_constraint =
        ["add constraint ", "add check ", "add foreign key ", "add unique ", "add primary key "]
            .iter()
            .any(|beginning| action.starts_with(beginning));
    if is_constraint {
        let is_index = [" unique", " primary key", " exclude "].iter().any(|kind| has(kind));
        return match is_index {
            true => (!has(" using index ")).then_some(
                "builds an index under an exclusive lock: build it `concurrently`, then `using index`",
            ),
            false => (!has(" not valid ")).then_some(SCANS),
        };
    }
    if action.starts_with("add ") {
        let default = action.split_once(" default ").map(|(_, default)| default);
        return if has(" generated ") || has("serial ") || default.is_some_and(is_volatile) {
            Some(REWRITES)
        } else if has(" check (") || has(" references ") || has(" unique ") || has(" primary key ") {
            Some(SCANS)
        } else {
            (has(" not null ") && default.is_none()).then_some(
                "instances of the release before insert without it: let it be null, or give it a default",
            )
        };
    }
    if has(" type ")
        || ["set logged", "set unlogged", "set tablespace"].iter().any(|begin| action.starts_with(begin))
    {
        return Some(REWRITES);
    }
    if has(" set not null ") {
        return Some(SCANS);
    }
    (action.starts_with("drop column ") || action.starts_with("rename ")).then_some(CONTRACTS)
}

/// Whether a default may differ from row to row, so that the server writes each row anew. `now()` is the same for all.
fn is_volatile(default: &str) -> bool {
    default.replace("now()", "").contains('(')
}

#[test]
fn no_new_migration_keeps_traffic_waiting() {
    for &kind in Database::ALL {
        for (name, text) in kind.migrations() {
            let version = name[1..].split_once("__").unwrap().0.parse::<u32>().unwrap();
            if version > last_unread(kind) {
                assert_eq!(refusal(text), None, "{}/{name}.sql", kind.name());
            }
        }
    }
}

#[test]
fn statements_without_comments_texts_and_bodies() {
    let text = "-- one; two\nComment on table t is 'a; b''s';\n-- beside: it is\n-- small\ncreate function f() as $$ a; b $$;\n";
    let found = statements(text);
    let words: Vec<_> =
        found.iter().map(|statement| (statement.words.as_str(), statement.is_excused)).collect();
    assert_eq!(words, [("comment on table t is ''''", false), ("create function f() as $$", true)]);
}

#[test]
fn what_does_not_go_beside_traffic_is_refused() {
    for text in [
        "create index t_a on t (a)",
        "create unique index t_a on only t (a)",
        "alter table t add column a text not null",
        "alter table t add column a uuid not null default gen_random_uuid()",
        "alter table t add column a bigserial",
        "alter table t add column b int, add column a int check (a > 0)",
        "alter table t add column a uuid references u",
        "alter table t add constraint t_a check (a > 0)",
        "alter table t add constraint t_a foreign key (a) references u",
        "alter table t add constraint t_a unique (a)",
        "alter table t add primary key (a)",
        "alter table only t alter column a type bigint",
        "alter table t alter a set data type bigint",
        "alter table t alter column a set not null",
        "alter table t drop column a",
        "alter table t rename column a to b",
        "alter table t rename to u",
        "alter table t set unlogged",
        "alter table t add constraint t_a check (a > 0) not valid; alter table t validate constraint t_a",
        "update t set a = 1",
        "delete from t",
        "truncate t",
        "lock table t",
        "drop table t",
        "alter publication p set table t (a)",
        "alter publication p drop table t",
        "create table u (a int); create index t_a on t (a)",
    ] {
        assert!(refusal(text).is_some(), "{text}");
        let excused = format!("-- beside: nobody uses it\n{text}");
        assert!(text.contains(';') || refusal(&excused).is_none(), "{excused}");
    }
}

#[test]
fn what_goes_beside_traffic_is_not() {
    for text in [
        "create table t (a int not null check (a > 0), b uuid primary key); create index t_a on t (a)",
        "create table if not exists t (a int); alter table t add column b int not null; update t set b = 1",
        "create index if not exists t_a on t (a)",
        "alter table t add column a text",
        "alter table t add column a timestamptz not null default now(), add column b int not null default 0",
        "alter table t add constraint t_a check (a > 0 and b in (1, 2)) not valid",
        "alter table t validate constraint t_a",
        "alter table t add constraint t_a unique using index t_a",
        "alter table t drop constraint t_a",
        "alter table t alter column a drop not null",
        "alter table t set (fillfactor = 80)",
        "alter publication p add table t (a)",
        "comment on column t.a is 'update t; drop table t'",
        "grant select, update on t to r",
        "insert into t values (1)",
    ] {
        assert_eq!(refusal(text), None, "{text}");
    }
}
