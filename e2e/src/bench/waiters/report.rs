//! Reports `bench waiters`: tables for people, one JSON document for programs.

use anyhow::Result;
use coroctl::audit::Finding;
use serde::Serialize;

use super::Options;
use super::streams::Streams;
use super::waits;
use crate::bench::audited::Audited;
use crate::bench::cpu::{ELSEWHERE, GENERATOR};
use crate::bench::figures::{dash, machine, median, table};
use crate::bench::latency::Summary;

#[derive(Serialize)]
pub struct Report {
    machine: String,
    streams: Option<Streams>,
    rate: u32,
    waiters: usize,
    turns: Vec<Turn>,
    /// Medians of the turns without and with waiters.
    cpu_seconds_without: Option<f64>,
    cpu_seconds_with: Option<f64>,
    #[serde(flatten)]
    pub audit: Audited,
}

#[derive(Serialize)]
struct Turn {
    has_waiters: bool,
    /// Processor seconds of the stack per 1,000 payments; the benchmark's own are left out.
    cpu_seconds_per_1000: f64,
    payments_svc_seconds_per_1000: f64,
    accept: Summary,
    settle: Summary,
    /// Share of all processors used by processes that are neither the stack's nor ours.
    elsewhere: f64,
}

impl Turn {
    fn new(turn: &waits::Turn) -> Self {
        let cpu = &turn.load.cpu;
        let payments = turn.load.settle.count.max(1) as f64;
        let stack: f64 = cpu
            .seconds
            .iter()
            .filter(|(group, _)| ![ELSEWHERE, GENERATOR].contains(&group.as_str()))
            .map(|(_, seconds)| seconds)
            .sum();
        Self {
            has_waiters: turn.has_waiters,
            cpu_seconds_per_1000: 1000.0 * stack / payments,
            payments_svc_seconds_per_1000: 1000.0 * cpu.of("payments-svc") / payments,
            accept: turn.load.accept,
            settle: turn.load.settle,
            elsewhere: cpu.elsewhere(),
        }
    }
}

impl Report {
    pub fn new(
        options: &Options,
        streams: Option<Streams>,
        turns: &[waits::Turn],
        findings: &[Finding],
    ) -> Self {
        let turns: Vec<Turn> = turns.iter().map(Turn::new).collect();
        let cpu_of = |has_waiters: bool| {
            let of = turns.iter().filter(|turn| turn.has_waiters == has_waiters);
            median(of.map(|turn| turn.cpu_seconds_per_1000).collect())
        };
        Self {
            machine: machine(),
            streams,
            rate: options.rate,
            waiters: options.waiters,
            cpu_seconds_without: cpu_of(false),
            cpu_seconds_with: cpu_of(true),
            turns,
            audit: Audited::new(findings),
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        if let Some(streams) = &self.streams {
            saga::say!("{}\n", memory(streams));
        }
        if !self.turns.is_empty() {
            saga::say!("{}\n", self.costs());
        }
        saga::say!("{}", self.machine);
        self.audit.print("Each stream ended with its payment");
        Ok(())
    }

    fn costs(&self) -> String {
        let mut table = table(&[
            "TURN",
            "WAITERS",
            "CPU S PER 1,000",
            "PAYMENTS-SVC",
            "ACCEPT P50",
            "P99",
            "SETTLE P50",
            "P99 MS",
            "ELSEWHERE",
        ]);
        for (nth, turn) in self.turns.iter().enumerate() {
            let waiters = if turn.has_waiters { self.waiters } else { 0 };
            let mut row = vec![(nth + 1).to_string(), waiters.to_string()];
            row.extend(
                [turn.cpu_seconds_per_1000, turn.payments_svc_seconds_per_1000]
                    .map(|cpu| format!("{cpu:.2}")),
            );
            let Turn { accept, settle, .. } = turn;
            row.extend(
                [accept.p50_ms, accept.p99_ms, settle.p50_ms, settle.p99_ms].map(|ms| format!("{ms:.1}")),
            );
            row.push(format!("{:.0} %", 100.0 * turn.elsewhere));
            table.add_row(row);
        }
        let growth = self.cpu_seconds_without.zip(self.cpu_seconds_with);
        let growth =
            growth.map_or_else(dash, |(without, with)| format!("{:+.1} %", 100.0 * (with / without - 1.0)));
        let figure = |cpu: Option<f64>| cpu.map_or_else(dash, |cpu| format!("{cpu:.2}"));
        format!(
            "{}\nAt {}/s the medians are {} without and {} with {} waiters: {growth}.",
            table.trim_fmt(),
            self.rate,
            figure(self.cpu_seconds_without),
            figure(self.cpu_seconds_with),
            self.waiters
        )
    }
}

fn memory(streams: &Streams) -> String {
    let Streams { clients, memory_bytes_before, memory_bytes_with_all, open_seconds, end_seconds } = streams;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let growth = *memory_bytes_with_all as f64 - *memory_bytes_before as f64;
    format!(
        "{clients} streams on one listener: {:.1} MiB before, {:.1} MiB with all, {:.1} KiB each.\n\
         Open within {open_seconds:.1} s; ended {end_seconds:.1} s after the gateway was back.",
        mib(*memory_bytes_before as f64),
        mib(*memory_bytes_with_all as f64),
        growth / 1024.0 / (*clients).max(1) as f64,
    )
}
