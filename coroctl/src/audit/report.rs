//! Reports the findings: a table for people, an object for machines, and an exit code for scripts.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::json;

use super::finding::Finding;

/// The exit code when an invariant is violated.
pub const VIOLATED: u8 = 1;
/// The exit code when nothing could be checked, or a target did not answer.
pub const NOT_CHECKED: u8 = 2;

/// One row per check, and the closing line.
pub fn text(findings: &[Finding], notes: &[String]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["CHECK", "PROMISE", "EXAMINED", "VIOLATIONS", "FIRST OFFENDER"]);
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for finding in findings {
        let Finding { name, promise, examined, violations, first, skipped, .. } = finding;
        let (examined, violations) = match skipped {
            Some(_) => ("-".to_owned(), "-".to_owned()),
            None => (examined.to_string(), violations.to_string()),
        };
        let last = match (skipped, first) {
            (Some(why), _) => format!("skipped: {why}"),
            (None, Some(first)) => first.clone(),
            (None, None) => String::new(),
        };
        table.add_row([(*name).to_owned(), (*promise).to_owned(), examined, violations, last]);
    }
    let mut text = table.trim_fmt();
    for note in notes {
        text.push_str(&format!("\n\n{note}"));
    }
    text.push_str(&format!("\n\n{}", closing(findings)));
    text
}

/// How many hold.
pub fn closing(findings: &[Finding]) -> String {
    let skipped = findings.iter().filter(|finding| finding.skipped.is_some()).count();
    let checked = findings.len() - skipped;
    let verdict = match findings.iter().filter(|finding| finding.is_violated()).count() {
        0 => format!("{checked} checks hold"),
        1 => format!("1 of {checked} checks is violated"),
        violated => format!("{violated} of {checked} checks are violated"),
    };
    if skipped == 0 { format!("{verdict}.") } else { format!("{verdict}; {skipped} were skipped.") }
}

pub fn machine(findings: &[Finding], notes: &[String]) -> Result<String> {
    let count = |which: fn(&Finding) -> bool| findings.iter().filter(|finding| which(finding)).count();
    let all = json!({
        "checks": findings,
        "held": count(Finding::holds),
        "violated": count(Finding::is_violated),
        "skipped": count(|finding| finding.skipped.is_some()),
        "notes": notes,
    });
    Ok(serde_json::to_string_pretty(&all)?)
}

/// The exit code: 0 when every check that was made holds.
pub fn code(findings: &[Finding]) -> u8 {
    if findings.iter().any(Finding::is_violated) {
        VIOLATED
    } else if findings.iter().all(|finding| finding.skipped.is_some()) {
        NOT_CHECKED
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Tally;
    use super::*;

    fn findings(states: &[&str]) -> Vec<Finding> {
        let finding = |state: &&str| {
            let mut tally = Tally::default();
            tally.check(*state != "violated", None, || "the offender".to_owned());
            let skipped = (*state == "skipped").then(|| "GATEWAY_URL is not given".to_owned());
            Finding { skipped, ..tally.finding("X1", "a promise") }
        };
        states.iter().map(finding).collect()
    }

    #[test]
    fn a_skipped_check_is_never_passed_in_silence() {
        for (states, line, exit) in [
            (&["holds", "holds"][..], "2 checks hold.", 0),
            (&["holds", "violated"], "1 of 2 checks is violated.", VIOLATED),
            (&["violated", "violated", "skipped"], "2 of 2 checks are violated; 1 were skipped.", VIOLATED),
            (&["holds", "skipped"], "1 checks hold; 1 were skipped.", 0),
            (&["skipped"], "0 checks hold; 1 were skipped.", NOT_CHECKED),
        ] {
            let findings = findings(states);
            assert_eq!((closing(&findings).as_str(), code(&findings)), (line, exit), "{states:?}");
            let text = text(&findings, &[]);
            assert_eq!(text.contains("the offender"), states.contains(&"violated"), "{text}");
            assert_eq!(text.contains("GATEWAY_URL"), states.contains(&"skipped"), "{text}");
            let machine: serde_json::Value = serde_json::from_str(&machine(&findings, &[]).unwrap()).unwrap();
            assert_eq!(machine["checks"].as_array().unwrap().len(), states.len());
        }
    }
}
