//! Renders the findings, the worst first, each with its fix.

use std::cmp::Reverse;
use std::fmt::Write as _;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use owo_colors::Style;
use serde::Serialize;

use super::finding::{Finding, Severity};

/// The findings of one place: a source's database, Kafka, RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// `source payments`, `kafka`, `rabbitmq`.
    pub name: String,
    /// The address, without a password.
    pub place: String,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub verdict: Severity,
    pub sections: Vec<Section>,
    /// The parts that were not checked, and why.
    pub not_checked: Vec<String>,
}

impl Report {
    pub fn new(mut sections: Vec<Section>, not_checked: Vec<String>) -> Report {
        for section in &mut sections {
            section.findings.sort_by_key(|finding| Reverse(finding.severity));
        }
        let all = sections.iter().flat_map(|section| &section.findings);
        let verdict = all.map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
        Report { verdict, sections, not_checked }
    }

    fn count(&self, severity: Severity) -> usize {
        let all = self.sections.iter().flat_map(|section| &section.findings);
        all.filter(|finding| finding.severity == severity).count()
    }

    /// For people, `width` columns wide.
    pub fn text(&self, width: u16, colour: bool) -> String {
        let mut out = String::new();
        let paint = |style: Style, text: &str| {
            if colour { style.style(text).to_string() } else { text.to_owned() }
        };
        for section in &self.sections {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{}  {}\n", paint(Style::new().bold(), &section.name), section.place);
            for finding in section.findings.iter().filter(|finding| finding.severity > Severity::Ok) {
                problem(finding, width, colour, &mut out);
            }
            let fine = section.findings.iter().filter(|finding| finding.severity == Severity::Ok);
            let rows =
                fine.map(|finding| (finding.subject.clone(), sentence_of(finding))).collect::<Vec<_>>();
            if !rows.is_empty() {
                let _ = writeln!(out, "{}", columns("ok", &rows, width, colour));
            }
            out.push('\n');
        }
        for left in &self.not_checked {
            let _ = writeln!(out, "Not checked: {left}.");
        }
        let counts = [Severity::WouldLoseData, Severity::WouldNotWork, Severity::Warning, Severity::Ok];
        let counts = counts.map(|severity| {
            let count = self.count(severity);
            let plural = if severity == Severity::Warning && count != 1 { "s" } else { "" };
            format!("{count} {severity}{plural}")
        });
        let counts = counts.join(", ");
        let _ = writeln!(out, "{}", paint(style(self.verdict).bold(), &counts));
        out
    }
}

fn sentence_of(finding: &Finding) -> String {
    if finding.why.is_empty() { finding.found.clone() } else { format!("{}: {}", finding.found, finding.why) }
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Ok => Style::new().green(),
        Severity::Warning => Style::new().yellow(),
        Severity::WouldNotWork | Severity::WouldLoseData => Style::new().red(),
    }
}

/// The first column: the longest severity, and a space on both sides.
const LABEL_WIDTH: u16 = 17;

fn problem(finding: &Finding, width: u16, colour: bool, out: &mut String) {
    let mut what = format!("{}: {}", finding.subject, finding.found);
    if !finding.why.is_empty() {
        let _ = write!(what, "\n{}", sentence(&finding.why));
    }
    let mut table = bare(width);
    table.add_row([finding.severity.to_string(), what]);
    let widths = [LABEL_WIDTH, width.saturating_sub(LABEL_WIDTH).max(30)];
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    let label = finding.severity.to_string();
    out.push_str(&painted(&table, &label, style(finding.severity), colour));
    // Not in the table, which would break lines that are to be copied.
    let indent = " ".repeat(usize::from(LABEL_WIDTH) + 1);
    for line in finding.fix.iter().flat_map(|fix| fix.lines()) {
        let line = if colour { Style::new().cyan().style(line).to_string() } else { line.to_owned() };
        let _ = writeln!(out, "{indent}  {line}");
    }
    out.push('\n');
}

/// The facts that are fine, in three columns.
fn columns(label: &str, rows: &[(String, String)], width: u16, colour: bool) -> String {
    let mut table = bare(width);
    for (subject, found) in rows {
        table.add_row([label, subject, found]);
    }
    let subjects =
        rows.iter().map(|(subject, _)| subject.chars().count()).max().unwrap_or(0).min(40) as u16 + 2;
    let widths = [LABEL_WIDTH, subjects, width.saturating_sub(LABEL_WIDTH + subjects).max(30)];
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    painted(&table, label, style(Severity::Ok), colour).trim_end_matches('\n').to_owned()
}

fn bare(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

/// The table's lines, with the label at their beginning in colour.
fn painted(table: &Table, label: &str, style: Style, colour: bool) -> String {
    let mut out = String::new();
    for line in table.lines() {
        let line = line.trim_end();
        match line.trim_start().strip_prefix(label) {
            Some(rest) if colour => {
                let _ = writeln!(out, " {}{rest}", style.style(label));
            }
            _ => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
    out
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}
