//! Reports `bench shard-away`: a table for people, one JSON document for programs.
#![allow(clippy::print_stdout, reason = "the report is the output")]

use anyhow::Result;
use coroctl::audit::Finding;
use serde::Serialize;

use super::Options;
use crate::bench::audited::Audited;
use crate::bench::figures::{dash, machine, median, table};
use crate::bench::latency::Summary;

#[derive(Serialize)]
pub struct Report {
    machine: String,
    shard: String,
    rate: u32,
    turns: Vec<Turn>,
    /// Medians of the turns with all shards and without one, in milliseconds.
    settle_p99_ms_with_all: Option<f64>,
    settle_p99_ms_without: Option<f64>,
    #[serde(flatten)]
    pub audit: Audited,
}

#[derive(Serialize)]
struct Turn {
    is_away: bool,
    accept: Summary,
    settle: Summary,
    /// Requests of the users of the shard.
    refused: usize,
}

impl Turn {
    fn new(turn: &super::Turn) -> Self {
        let super::Turn { is_away, others, refused } = turn;
        Self { is_away: *is_away, accept: others.accept, settle: others.settle, refused: *refused }
    }
}

impl Report {
    pub fn new(shard: &str, options: &Options, turns: &[super::Turn], findings: &[Finding]) -> Self {
        let turns: Vec<Turn> = turns.iter().map(Turn::new).collect();
        let p99_of = |is_away: bool| {
            let of = turns.iter().filter(|turn| turn.is_away == is_away);
            median(of.map(|turn| turn.settle.p99_ms).collect())
        };
        Self {
            machine: machine(),
            shard: shard.to_owned(),
            rate: options.rate,
            settle_p99_ms_with_all: p99_of(false),
            settle_p99_ms_without: p99_of(true),
            turns,
            audit: Audited::new(findings),
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        println!("{}\n\n{}", self.latencies(), self.machine);
        self.audit.print("No payment of a user of another shard was refused, and each ended");
        Ok(())
    }

    fn latencies(&self) -> String {
        let mut table =
            table(&["TURN", "SHARDS", "ACCEPT P50", "P99", "SETTLE P50", "P99", "MAX MS", "REFUSED THERE"]);
        for (nth, turn) in self.turns.iter().enumerate() {
            let shards = if turn.is_away { format!("without {}", self.shard) } else { "all".to_owned() };
            let Turn { accept, settle, .. } = turn;
            let mut row = vec![(nth + 1).to_string(), shards];
            row.extend(
                [accept.p50_ms, accept.p99_ms, settle.p50_ms, settle.p99_ms, settle.max_ms]
                    .map(|ms| format!("{ms:.1}")),
            );
            row.push(turn.refused.to_string());
            table.add_row(row);
        }
        let ratio = self.settle_p99_ms_with_all.zip(self.settle_p99_ms_without);
        let ratio = ratio.map_or_else(dash, |(all, without)| format!("{:.2} ×", without / all));
        let figure = |ms: Option<f64>| ms.map_or_else(dash, |ms| format!("{ms:.1}"));
        format!(
            "{}\nUsers of the other shards at {}/s, medians of settle p99: {} ms with all shards and {} ms without {}: {ratio}.",
            table.trim_fmt(),
            self.rate,
            figure(self.settle_p99_ms_with_all),
            figure(self.settle_p99_ms_without),
            self.shard
        )
    }
}
