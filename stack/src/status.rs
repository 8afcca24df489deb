//! `cargo stack status`: one line per process of the stack.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::control::ChildStatus;
use crate::process::{self, Stat};

/// A table of the children, in order of starting.
pub fn table(children: &[ChildStatus]) -> String {
    let processes = process::all();
    let mut ordered: Vec<&ChildStatus> = children.iter().collect();
    ordered.sort_by_key(|child| (child.tier, child.port));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "STATE", "PID", "PORT", "UP", "RESTARTS", "MEMORY", "CPU S"]);
    for child in ordered {
        table.add_row(row(child, &processes));
    }
    for column in [2, 3, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn row(child: &ChildStatus, processes: &[Stat]) -> [String; 8] {
    let dash = || "-".to_owned();
    let (pid, up, memory, cpu) = match child.id {
        Some(id) => {
            let usage = process::usage(processes, id);
            let memory = format!("{} MiB", usage.memory_bytes / (1024 * 1024));
            (id.pid.to_string(), duration(process::uptime(id)), memory, format!("{:.1}", usage.cpu_seconds))
        }
        None => (dash(), dash(), dash(), dash()),
    };
    let port = child.port.map_or_else(dash, |port| port.to_string());
    [child.name.clone(), child.state.clone(), pid, port, up, child.restarts.to_string(), memory, cpu]
}

/// The two largest units.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_two_units() {
        let shown: Vec<_> = [5, 65, 3_700, 90_000].map(|s| duration(Duration::from_secs(s))).into();
        assert_eq!(shown, ["5s", "1m05s", "1h01m", "1d01h"]);
    }

    #[test]
    fn a_stopped_child_has_a_line_too() {
        let child = ChildStatus {
            name: "redis".into(),
            state: "stopped".into(),
            id: None,
            restarts: 2,
            port: Some(21_011),
            tier: 1,
        };
        let table = table(&[child]);
        assert!(table.contains("redis") && table.contains("stopped") && table.contains("21011"), "{table}");
    }
}
