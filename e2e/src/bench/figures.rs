//! Figures of every benchmark: the machine, medians, and tables.

use comfy_table::{CellAlignment, Table, presets};

/// Kernel threads alone stay below this share of the machine.
pub const IDLE_SHARE_MAX: f64 = 0.08;

/// The machine in a sentence.
pub fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes: u64 =
        total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default();
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy().into_owned();
    format!("{processors} processors, {:.0} GiB, Linux {release}.", kilobytes as f64 / f64::from(1 << 20))
}

/// The median; for an even number of figures the mean of the middle two.
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// A table with right-aligned figures.
pub fn table<T: ToString>(header: &[T]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(ToString::to_string));
    for column in 1..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The mark of a figure that was not measured.
pub fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
