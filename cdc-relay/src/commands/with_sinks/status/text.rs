//! Renders the report of `status` for a terminal.

use std::fmt::Write as _;

use owo_colors::Style;

use super::{Report, SlotStatus, SourceReport, is_streamed};
use crate::commands::doctor::slot::{duration, size};
use crate::postgres::shell;

pub fn text(report: &Report, colour: bool) -> String {
    let mut out = String::new();
    for source in &report.sources {
        write_source(&mut out, source, colour);
    }
    // Writing into a String cannot fail.
    for (name, topic) in &report.topics {
        let _ = writeln!(out, "topic {name}: {} records, {} partitions", topic.end, topic.partitions);
    }
    let _ = writeln!(out, "dead letters: {}", report.dead_letters);
    report.problems.iter().for_each(|problem| {
        let _ = writeln!(out, "{}", paint(Style::new().yellow(), problem, colour));
    });
    out
}

fn paint(style: Style, text: &str, colour: bool) -> String {
    if colour { style.style(text).to_string() } else { text.to_owned() }
}

fn write_source(out: &mut String, source: &SourceReport, colour: bool) {
    let state = source.state.as_deref().unwrap_or(match &source.slot_status {
        Some(status) if status.active => "is being read",
        _ => "is not being read",
    });
    let style = if is_streamed(source) { Style::new().green() } else { Style::new().red() };
    let name = paint(Style::new().bold(), &source.source, colour);
    let _ = writeln!(out, "{name}  {}", paint(style, state, colour));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<14} {value}");
    };
    if let Some(detail) = &source.detail {
        line("why", detail.clone());
    }
    if let Some(held) = &source.held {
        line("held", held.clone());
    }
    match &source.slot_status {
        None => line("slot", format!("{} does not exist, or its server does not answer", source.slot)),
        Some(status) => {
            let confirmed = status.confirmed.as_deref().unwrap_or("nothing");
            let (lag, retained) = (size(status.lag_bytes), size(status.retained_bytes));
            line("slot", format!("{}, confirmed up to {confirmed}", source.slot));
            let wal_status = status.wal_status.as_deref().unwrap_or("?");
            let left = time_left(status);
            line("WAL", format!("{lag} behind, {retained} retained ({wal_status}), {left}"));
            if !status.active {
                let name = shell::quote(&source.source);
                let fix = format!("start a relay, or remove the source: cdc-relay remove --source {name}");
                line("idle", format!("nobody reads the slot, and the server retains WAL for it: {fix}"));
            }
        }
    }
    match &source.checkpoint {
        None => line("checkpoint", "nothing is saved".to_owned()),
        Some(saved) => line(
            "checkpoint",
            format!(
                "acknowledged {}, sent {}, {}{}",
                saved.acknowledged,
                saved.sent_lsn,
                saved.phase,
                if saved.synchronous { ", all of it on synchronous standbys" } else { "" }
            ),
        ),
    }
    if source.halted_keys > 0 {
        line("halted keys", source.halted_keys.to_string());
    }
    out.push('\n');
}

fn time_left(status: &SlotStatus) -> String {
    let rate = size(status.wal_bytes_per_second as i64);
    match (status.safe_bytes, status.seconds_left) {
        (None, _) => format!("no limit; WAL grows by {rate}/s"),
        (Some(safe), None) => format!("{} until the slot is invalidated; WAL does not grow", size(safe)),
        (Some(safe), Some(seconds)) => {
            format!("{} until the slot is invalidated: {} at {rate}/s", size(safe), duration(seconds))
        }
    }
}
