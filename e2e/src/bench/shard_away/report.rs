//! Reports `bench shard-away`: a table for people, one JSON document for programs.

use anyhow::Result;
use coroctl::audit::Finding;
use serde::Serialize;

use super::{Kind, Options};
use crate::bench::audited::Audited;
use crate::bench::figures::{dash, machine, median, table};
use crate::bench::latency::Summary;

#[derive(Serialize)]
pub struct Report {
    machine: String,
    shard: String,
    rate: u32,
    turns: Vec<Turn>,
    /// Medians of the turns of each kind, in milliseconds.
    settle_p99_ms_alone: Option<f64>,
    settle_p99_ms_all: Option<f64>,
    settle_p99_ms_away: Option<f64>,
    #[serde(flatten)]
    pub audit: Audited,
}

#[derive(Serialize)]
struct Turn {
    kind: Kind,
    accept: Summary,
    settle: Summary,
    /// Visits of the users of the shard.
    failed_there: usize,
}

impl Turn {
    fn new(turn: &super::Turn) -> Self {
        let super::Turn { kind, others, failed } = turn;
        Self { kind: *kind, accept: others.accept, settle: others.settle, failed_there: *failed }
    }
}

impl Report {
    pub fn new(shard: &str, options: &Options, turns: &[super::Turn], findings: &[Finding]) -> Self {
        let turns: Vec<Turn> = turns.iter().map(Turn::new).collect();
        let p99_of = |kind: Kind| {
            median(turns.iter().filter(|turn| turn.kind == kind).map(|turn| turn.settle.p99_ms).collect())
        };
        Self {
            machine: machine(),
            shard: shard.to_owned(),
            rate: options.rate,
            settle_p99_ms_alone: p99_of(Kind::Alone),
            settle_p99_ms_all: p99_of(Kind::All),
            settle_p99_ms_away: p99_of(Kind::Away),
            turns,
            audit: Audited::new(findings),
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        saga::say!("{}\n\n{}", self.latencies(), self.machine);
        self.audit.print("No payment of a user of another shard was refused, and each ended");
        Ok(())
    }

    fn latencies(&self) -> String {
        let mut table = table(&[
            "TURN",
            "OF THE SHARD",
            "ACCEPT P50",
            "P99",
            "SETTLE P50",
            "P99",
            "MAX MS",
            "FAILED THERE",
        ]);
        for (nth, turn) in self.turns.iter().enumerate() {
            let theirs = match turn.kind {
                Kind::Alone => "no load",
                Kind::All => "as much load",
                Kind::Away => "load, and it is away",
            };
            let Turn { accept, settle, .. } = turn;
            let mut row = vec![(nth + 1).to_string(), theirs.to_owned()];
            row.extend(
                [accept.p50_ms, accept.p99_ms, settle.p50_ms, settle.p99_ms, settle.max_ms]
                    .map(|ms| format!("{ms:.1}")),
            );
            row.push(turn.failed_there.to_string());
            table.add_row(row);
        }
        let times = |base: Option<f64>| {
            let ratio = base.zip(self.settle_p99_ms_away).map(|(base, away)| format!("{:.2}", away / base));
            ratio.unwrap_or_else(dash)
        };
        format!(
            "{}\nUsers of the other shards at {}/s, settle p99 while {} is away, by medians: {} times that without load there, {} times \
             that with it.",
            table.trim_fmt(),
            self.rate,
            self.shard,
            times(self.settle_p99_ms_alone),
            times(self.settle_p99_ms_all),
        )
    }
}
