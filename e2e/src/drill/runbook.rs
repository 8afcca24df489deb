//! The pages of `docs/runbooks`: their sections, and the scripts of each.
//!
//! * A script is a block marked `sh`. In a section about an alert those below **Do.** change something, those above only read.
//! * A page without an alert is about a planned change: all of its scripts change something.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A section of a page; the text above the first heading is a section too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The file's name.
    pub page: String,
    /// Empty above the first heading.
    pub heading: String,
    /// Scripts that only read.
    pub looks: Vec<String>,
    /// Scripts that change something.
    pub acts: Vec<String>,
}

/// Where the pages are: beside the sources that this program was built from.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks")
}

/// The sections of every page.
///
/// # Errors
/// When the folder cannot be read.
pub fn all() -> Result<Vec<Section>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).context("docs/runbooks")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.iter().filter(|name| name.ends_with(".md")).try_fold(Vec::new(), |mut all, name| {
        all.extend(page(name)?);
        Ok(all)
    })
}

/// The sections of one page.
///
/// # Errors
/// When there is no such page.
pub fn page(name: &str) -> Result<Vec<Section>> {
    let text = std::fs::read_to_string(folder().join(name));
    Ok(sections(name, &text.with_context(|| format!("docs/runbooks/{name}"))?))
}

/// The section of a page with this heading.
///
/// # Errors
/// When there is none.
pub fn section(page_name: &str, heading: &str) -> Result<Section> {
    let found = page(page_name)?.into_iter().find(|section| section.heading == heading);
    found.with_context(|| format!("docs/runbooks/{page_name} has no section {heading}"))
}

fn sections(page: &str, text: &str) -> Vec<Section> {
    let is_planned = !text.contains("**Means.**");
    let parts = text.split("\n## ").enumerate();
    parts
        .map(|(nth, part)| {
            let (heading, rest) = part.split_once('\n').unwrap_or((part, ""));
            let (look, act) = match part.split_once("**Do.**") {
                Some(parts) => parts,
                None if is_planned => ("", rest),
                None => (rest, ""),
            };
            Section {
                page: page.to_owned(),
                heading: if nth == 0 { String::new() } else { heading.trim().to_owned() },
                looks: scripts(look),
                acts: scripts(act),
            }
        })
        .collect()
}

fn scripts(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALERTS: &str = "# Title\n\n```sh\nfirst\n```\n\n## One\n\n**Means.** x\n\n**Look.**\n\n```sh\nlook\n```\n\n\
                          **Do.** y\n\n```sh\nact\n```\n\n```text\nno\n```\n\n```sh\nact again\n```\n\n## Two\n\n**Means.** x **Do.** z\n";

    #[test]
    fn scripts_below_do_change_something_and_those_above_only_read() {
        let section = |heading: &str, looks: &[&str], acts: &[&str]| Section {
            page: "p.md".to_owned(),
            heading: heading.to_owned(),
            looks: looks.iter().map(|script| format!("{script}\n")).collect(),
            acts: acts.iter().map(|script| format!("{script}\n")).collect(),
        };
        let expected = [
            section("", &["first"], &[]),
            section("One", &["look"], &["act", "act again"]),
            section("Two", &[], &[]),
        ];
        assert_eq!(sections("p.md", ALERTS), expected);
    }

    #[test]
    fn every_script_of_a_planned_change_changes_something() {
        let sections = sections("p.md", "# Title\n\n## Step\n\n```sh\nact\n```\n");
        assert_eq!(
            (sections[1].looks.len(), sections[1].acts.as_slice()),
            (0, ["act\n".to_owned()].as_slice())
        );
    }
}
