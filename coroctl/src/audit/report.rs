//! What the audit says: a table for people, an object for machines, and an exit code for scripts.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::json;

use super::finding::Finding;

/// Some invariant is violated.
pub const VIOLATED: u8 = 1;
/// It could not look, or not at everything it was asked to.
pub const COULD_NOT_LOOK: u8 = 2;

/// One row a check, and the closing line.
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
            (Some(why), _) => format!("not looked at: {why}"),
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
    let looked = findings.len() - skipped;
    let verdict = match findings.iter().filter(|finding| finding.is_violated()).count() {
        0 => format!("{looked} checks hold"),
        1 => format!("1 of {looked} checks is violated"),
        violated => format!("{violated} of {looked} checks are violated"),
    };
    if skipped == 0 { format!("{verdict}.") } else { format!("{verdict}; {skipped} were not looked at.") }
}

pub fn machine(findings: &[Finding], notes: &[String]) -> Result<String> {
    let count = |which: fn(&Finding) -> bool| findings.iter().filter(|finding| which(finding)).count();
    let all = json!({
        "checks": findings,
        "held": count(Finding::holds),
        "violated": count(Finding::is_violated),
        "not_looked_at": count(|finding| finding.skipped.is_some()),
        "notes": notes,
    });
    Ok(serde_json::to_string_pretty(&all)?)
}

/// 0 when everything that was looked at holds.
pub fn code(findings: &[Finding]) -> u8 {
    if findings.iter().any(Finding::is_violated) {
        VIOLATED
    } else if findings.iter().all(|finding| finding.skipped.is_some()) {
        COULD_NOT_LOOK
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
            tally.look(*state != "violated", None, || "the offender".to_owned());
            let skipped = (*state == "skipped").then(|| "GATEWAY_URL is not given".to_owned());
            Finding { skipped, ..tally.finding("X1", "a promise") }
        };
        states.iter().map(finding).collect()
    }

    #[test]
    fn what_was_not_looked_at_is_never_passed_in_silence() {
        for (states, line, exit) in [
            (&["holds", "holds"][..], "2 checks hold.", 0),
            (&["holds", "violated"], "1 of 2 checks is violated.", VIOLATED),
            (
                &["violated", "violated", "skipped"],
                "2 of 2 checks are violated; 1 were not looked at.",
                VIOLATED,
            ),
            (&["holds", "skipped"], "1 checks hold; 1 were not looked at.", 0),
            (&["skipped"], "0 checks hold; 1 were not looked at.", COULD_NOT_LOOK),
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
