//! Processor seconds per 1,000 payments, by process and load.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cpu::{BACKENDS, CpuTime, ELSEWHERE, GENERATOR};
use super::figures;

/// The costs of one load.
#[derive(Serialize)]
pub struct Costs {
    load: String,
    by_process: BTreeMap<String, f64>,
    /// Everything but `elsewhere`.
    total: f64,
    total_without_backends: f64,
}

impl Costs {
    /// Adds up rounds; `None` without a payment.
    pub fn new<'a>(load: String, rounds: impl Iterator<Item = (u64, &'a CpuTime)>) -> Option<Self> {
        let (mut payments, mut cpu_time) = (0, CpuTime::default());
        for (settled, cpu) in rounds {
            payments += settled;
            cpu_time.add(cpu);
        }
        let each = |(group, seconds): (String, f64)| (group, 1000.0 * seconds / payments as f64);
        let by_process: BTreeMap<String, f64> =
            (payments > 0).then(|| cpu_time.seconds.into_iter().map(each).collect())?;
        let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
            by_process.iter().filter(|(group, _)| wanted(group)).map(|(_, seconds)| seconds).sum()
        };
        let total = sum(&|group| group != ELSEWHERE);
        let total_without_backends = total - sum(&|group| group.starts_with(BACKENDS));
        Some(Self { load, by_process, total, total_without_backends })
    }
}

/// One column for each load.
pub fn table(costs: &[Costs]) -> String {
    let mut header = vec!["CPU SECONDS PER 1,000 PAYMENTS".to_owned()];
    header.extend(costs.iter().map(|cpu| cpu.load.to_uppercase()));
    let mut table = figures::table(&header);
    let mut most: BTreeMap<&str, f64> = BTreeMap::new();
    // In the order of the first load, which is the one that matters most.
    for (group, seconds) in costs.iter().rev().flat_map(|cpu| &cpu.by_process) {
        most.insert(group, *seconds);
    }
    let mut groups: Vec<&str> = most.keys().copied().filter(|group| *group != ELSEWHERE).collect();
    groups.sort_by(|a, b| most[b].total_cmp(&most[a]));
    let figure = |seconds: Option<f64>| seconds.map_or_else(figures::dash, |seconds| format!("{seconds:.3}"));
    let mut row = |name: &str, of: &dyn Fn(&Costs) -> Option<f64>| {
        table.add_row([name.to_owned()].into_iter().chain(costs.iter().map(|cpu| figure(of(cpu)))));
    };
    for group in groups {
        let name = if group == GENERATOR { "generator (this benchmark)" } else { group };
        row(name, &|cpu| cpu.by_process.get(group).copied());
    }
    row("all of the above", &|cpu| Some(cpu.total));
    row("  without Postgres backends", &|cpu| Some(cpu.total_without_backends));
    row(ELSEWHERE, &|cpu| cpu.by_process.get(ELSEWHERE).copied());
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_per_thousand_payments() {
        let seconds =
            [("x".to_owned(), 3.0), ("postgres backends y".to_owned(), 1.5), (ELSEWHERE.to_owned(), 9.0)];
        let cpu_time = CpuTime { seconds: seconds.into(), capacity: 10.0 };
        let cpu = Costs::new("load".to_owned(), [(1000, &cpu_time), (500, &cpu_time)].into_iter()).unwrap();
        assert_eq!((cpu.total, cpu.total_without_backends), (6.0, 4.0));
        assert!(Costs::new("none".to_owned(), std::iter::empty()).is_none());
    }
}
