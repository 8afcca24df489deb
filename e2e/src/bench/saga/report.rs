//! Reports `bench saga`: tables for people, one JSON document for programs.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::Options;
use crate::bench::audited::Audited;
use crate::bench::closed::ClosedLoop;
use crate::bench::costs::{self, Costs};
use crate::bench::figures::{IDLE_SHARE_MAX, dash, machine, median, table};
use crate::bench::floor::FloorFigures;
use crate::bench::latency::Summary;
use crate::bench::open::OpenLoop;
use coroctl::audit::Finding;

#[derive(Serialize)]
pub struct Report {
    machine: String,
    clients: usize,
    users: usize,
    zipf: f64,
    seconds: u64,
    rounds: Vec<Round>,
    settled_per_second: Option<f64>,
    floor_per_second: Option<f64>,
    /// The ratio of the medians.
    ratio: Option<f64>,
    loops: Vec<Latency>,
    /// How payments of the closed loops ended.
    ended: BTreeMap<&'static str, u64>,
    /// Processor seconds per 1,000 payments, by load.
    cpu: Vec<Costs>,
    #[serde(flatten)]
    pub audit: Audited,
}

#[derive(Serialize)]
struct Round {
    settled_per_second: f64,
    floor_per_second: Option<f64>,
    /// Share of all processors that was busy.
    saga_busy: f64,
    floor_busy: Option<f64>,
    /// Share of all processors used by processes that are neither the stack's nor ours.
    saga_elsewhere: f64,
    floor_elsewhere: Option<f64>,
}

#[derive(Serialize)]
struct Latency {
    name: String,
    accept: Summary,
    settle: Summary,
}

impl Report {
    pub fn new(
        options: &Options,
        saga: &[ClosedLoop],
        floor: &[FloorFigures],
        open: &[OpenLoop],
        findings: &[Finding],
    ) -> Self {
        let rate = |settled: u64, seconds: f64| settled as f64 / seconds;
        let settled_per_second =
            median(saga.iter().map(|round| rate(round.settled, round.seconds)).collect());
        let floor_per_second = median(floor.iter().map(|round| rate(round.settled, round.seconds)).collect());
        let rounds = saga.iter().enumerate().map(|(nth, round)| {
            let floor = floor.get(nth);
            Round {
                settled_per_second: rate(round.settled, round.seconds),
                floor_per_second: floor.map(|floor| rate(floor.settled, floor.seconds)),
                saga_busy: round.cpu.busy(),
                floor_busy: floor.map(|floor| floor.cpu.busy()),
                saga_elsewhere: round.cpu.elsewhere(),
                floor_elsewhere: floor.map(|floor| floor.cpu.elsewhere()),
            }
        });
        let closed = saga.iter().enumerate().map(|(nth, round)| Latency {
            name: format!("closed, {} clients, round {}", options.clients, nth + 1),
            accept: round.accept,
            settle: round.settle,
        });
        let opened = open.iter().map(|open| Latency {
            name: format!("open, {}/s", open.rate),
            accept: open.accept,
            settle: open.settle,
        });
        let loads = [
            Costs::new("closed".to_owned(), saga.iter().map(|round| (round.settled, &round.cpu))),
            Costs::new("floor".to_owned(), floor.iter().map(|round| (round.settled, &round.cpu))),
        ];
        let rates = open
            .iter()
            .map(|open| Costs::new(format!("{}/s", open.rate), [(open.settle.count, &open.cpu)].into_iter()));
        let cpu = loads.into_iter().chain(rates).flatten().collect();
        let mut ended: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (event, count) in saga.iter().flat_map(|round| &round.ended) {
            *ended.entry(event).or_default() += count;
        }
        Self {
            machine: machine(),
            clients: options.clients,
            users: options.users,
            zipf: options.zipf,
            seconds: options.seconds,
            rounds: rounds.collect(),
            settled_per_second,
            floor_per_second,
            ratio: settled_per_second.zip(floor_per_second).map(|(saga, floor)| saga / floor),
            loops: closed.chain(opened).collect(),
            ended,
            cpu,
            audit: Audited::new(findings),
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        if !self.rounds.is_empty() {
            saga::say!("{}\n", self.throughput());
        }
        saga::say!("{}\n", self.latencies());
        saga::say!("{}\n", costs::table(&self.cpu));
        saga::say!("{}", self.machine);
        let most =
            self.rounds.iter().map(|round| round.saga_elsewhere.max(round.floor_elsewhere.unwrap_or(0.0)));
        let most = most.fold(0.0, f64::max);
        if most > IDLE_SHARE_MAX {
            saga::say!(
                "The machine was not quiet: others used up to {:.0} % of it, so these figures are too low.",
                100.0 * most
            );
        }
        let ended: Vec<String> = self.ended.iter().map(|(event, count)| format!("{count} {event}")).collect();
        if !ended.is_empty() {
            saga::say!("Ended in the closed loops: {}.", ended.join(", "));
        }
        self.audit.print("Every accepted payment has ended");
        Ok(())
    }

    fn throughput(&self) -> String {
        let mut table = table(&[
            "ROUND",
            "SAGA/S",
            "FLOOR/S",
            "RATIO",
            "BUSY",
            "FLOOR BUSY",
            "ELSEWHERE",
            "FLOOR ELSEWHERE",
        ]);
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        for (nth, round) in self.rounds.iter().enumerate() {
            table.add_row([
                (nth + 1).to_string(),
                whole(Some(round.settled_per_second)),
                whole(round.floor_per_second),
                ratio(round.floor_per_second.map(|floor| round.settled_per_second / floor)),
                percent(round.saga_busy),
                round.floor_busy.map_or_else(dash, percent),
                percent(round.saga_elsewhere),
                round.floor_elsewhere.map_or_else(dash, percent),
            ]);
        }
        table.add_row([
            "median".to_owned(),
            whole(self.settled_per_second),
            whole(self.floor_per_second),
            ratio(self.ratio),
        ]);
        table.trim_fmt()
    }

    fn latencies(&self) -> String {
        let mut table =
            table(&["MILLISECONDS", "PAYMENTS", "ACCEPT P50", "P99", "MAX", "SETTLE P50", "P99", "MAX"]);
        for Latency { name, accept, settle } in &self.loops {
            let mut row = vec![name.clone(), settle.count.to_string()];
            for Summary { p50_ms, p99_ms, max_ms, .. } in [accept, settle] {
                row.extend([p50_ms, p99_ms, max_ms].map(|ms| format!("{ms:.1}")));
            }
            table.add_row(row);
        }
        table.trim_fmt()
    }
}

fn whole(figure: Option<f64>) -> String {
    figure.map_or_else(dash, |figure| format!("{figure:.0}"))
}

fn ratio(figure: Option<f64>) -> String {
    figure.map_or_else(dash, |figure| format!("{figure:.2}"))
}
