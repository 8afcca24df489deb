//! Tests that alerts and runbooks belong to each other, and that what a runbook says to run is a script.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Name and text of each page but the first one.
fn pages() -> Vec<(String, String)> {
    let folder = fs::read_dir(root().join("docs/runbooks")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "README.md").collect();
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(root().join("docs/runbooks").join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// Heading and text of each section.
fn sections(page: &str) -> Vec<(&str, &str)> {
    page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect()
}

fn is_alert(heading: &str) -> bool {
    let one_word = heading.chars().all(char::is_alphanumeric);
    one_word && (heading.starts_with("Coro") || heading.starts_with("CdcRelay"))
}

/// The alerts of all rules, each as page and heading.
fn alerts() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("compose/prometheus/rules")).unwrap() {
        let path = entry.unwrap().path();
        let rules = fs::read_to_string(&path).unwrap();
        let page = format!("{}.md", path.file_stem().unwrap().to_str().unwrap());
        let names = rules.split("- alert: ").skip(1).map(|alert| alert.lines().next().unwrap().to_owned());
        found.extend(names.map(|name| (page.clone(), name)));
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

#[test]
fn every_alert_has_a_section_and_every_section_an_alert() {
    let mut explained = BTreeSet::new();
    for (name, text) in pages() {
        for (heading, _) in sections(&text).into_iter().filter(|(heading, _)| is_alert(heading)) {
            assert!(explained.insert((name.clone(), heading.to_owned())), "{name} explains {heading} twice");
        }
    }
    assert_eq!(explained, alerts());
}

#[test]
fn the_first_page_lists_every_other_and_those_without_an_alert_as_planned_changes() {
    let first = fs::read_to_string(root().join("docs/runbooks/README.md")).unwrap();
    let (of_alerts, planned) = first.split_once("## Planned changes").unwrap_or((&first, ""));
    for (name, text) in pages() {
        let has_alerts = sections(&text).iter().any(|(heading, _)| is_alert(heading));
        let list = if has_alerts { of_alerts } else { planned };
        assert!(list.contains(&format!("]({name})")), "README.md does not list {name} where it belongs");
    }
}

#[test]
fn a_section_says_what_it_means_and_what_to_do() {
    for (name, text) in pages() {
        for (heading, section) in sections(&text).into_iter().filter(|(heading, _)| is_alert(heading)) {
            let at =
                |part: &str| section.find(part).unwrap_or_else(|| panic!("{name}: {heading}: no {part}"));
            let (means, act) = (at("**Means.**"), at("**Do.**"));
            let look = section.find("**Look.**").unwrap_or(means);
            assert!(means <= look && look < act, "{name}: {heading}: in another order");
        }
    }
}

#[test]
fn what_is_to_be_run_is_a_script_whose_commands_exist() {
    let mut scripts = 0;
    for (name, text) in pages() {
        for script in text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            scripts += 1;
            let checked = Command::new("sh").args(["-n", "-c", script]).output().unwrap();
            assert!(checked.status.success(), "{name}: {script}{}", String::from_utf8_lossy(&checked.stderr));
            for verb in verbs(script, "cargo stack ") {
                let mut help = Command::new(env!("CARGO_BIN_EXE_stack"));
                let help = help.args([verb, "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
                assert!(help.status().unwrap().success(), "{name}: cargo stack has no {verb}");
            }
        }
    }
    assert!(scripts > 20, "{scripts}");
}

/// The words that follow a command at the beginning of a line.
fn verbs<'a>(script: &'a str, command: &str) -> Vec<&'a str> {
    let lines = script.lines().filter_map(|line| line.trim_start().strip_prefix(command));
    lines.map(|rest| rest.split_whitespace().next().unwrap()).collect()
}

#[test]
fn a_link_leads_to_a_page_and_a_heading_that_are_there() {
    let all = pages();
    let headings = |text: &str| -> BTreeSet<String> {
        sections(text).iter().map(|(heading, _)| heading.to_lowercase().replace(' ', "-")).collect()
    };
    for (name, text) in &all {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if path.starts_with("http") {
                continue;
            }
            let target = if path.is_empty() { name } else { path };
            let file = root().join("docs/runbooks").join(target);
            let linked = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {link}: {error}"));
            assert!(anchor.is_empty() || headings(&linked).contains(anchor), "{name}: no heading for {link}");
        }
    }
}
