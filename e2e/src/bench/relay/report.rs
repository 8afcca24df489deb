//! Reports `bench relay`: medians beside each other, then every run.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::backlog::Shape;
use super::{Name, Options, median_of};
use crate::bench::cpu::{CpuTime, ELSEWHERE};
use crate::bench::figures::{self, IDLE_SHARE_MAX, dash};
use crate::bench::latency::Summary;

/// Processor seconds per million rows.
#[derive(Debug, Clone, Serialize)]
pub struct Costs {
    pub engine: f64,
    pub walsender: f64,
    pub kafka: f64,
    /// Share of all processors used by processes that do not take part.
    pub elsewhere: f64,
}

impl Costs {
    pub fn new(cpu_time: &CpuTime, rows: f64, engine: Name) -> Self {
        let per_million = |group: &str| cpu_time.of(group) * 1e6 / rows;
        Self {
            engine: per_million(engine.shown()),
            walsender: per_million("postgres walsenders"),
            kafka: per_million("kafka"),
            elsewhere: cpu_time.of(ELSEWHERE) / cpu_time.capacity.max(f64::MIN_POSITIVE),
        }
    }
}

/// One drain.
#[derive(Debug, Serialize)]
pub struct Round {
    #[serde(serialize_with = "name")]
    pub engine: Name,
    #[serde(serialize_with = "shape")]
    pub shape: Shape,
    pub round: u32,
    pub rows_per_second: f64,
    pub costs: Costs,
    pub peak_mib: f64,
    /// Rows that are not in the topic; looked for in the first round.
    pub lost: u64,
}

/// One measurement of latencies.
#[derive(Debug, Serialize)]
pub struct Latency {
    #[serde(serialize_with = "name")]
    pub engine: Name,
    pub rate: f64,
    pub commit: Summary,
    /// The statement as the committer sees it.
    pub write: Summary,
    pub cores: f64,
    pub peak_mib: f64,
}

#[derive(Serialize)]
pub struct Report {
    machine: String,
    rows: u64,
    pub rounds: Vec<Round>,
    pub latencies: Vec<Latency>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn name<S: serde::Serializer>(name: &Name, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.shown())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn shape<S: serde::Serializer>(shape: &Shape, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(shape)
}

impl Report {
    pub fn new(options: &Options) -> Self {
        Self { machine: figures::machine(), rows: options.rows, rounds: Vec::new(), latencies: Vec::new() }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            saga::say!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        if !self.rounds.is_empty() {
            saga::say!("{} rows. Medians; processor seconds per million rows.\n", self.rows);
            saga::say!("{}\n\n{}\n", self.medians(), self.all_rounds());
        }
        if !self.latencies.is_empty() {
            saga::say!("{}\n", self.latency_table());
        }
        saga::say!("{}", self.machine);
        let elsewhere = self.rounds.iter().map(|round| round.costs.elsewhere).fold(0.0, f64::max);
        if elsewhere > IDLE_SHARE_MAX {
            saga::say!(
                "The machine was not quiet: others used up to {:.0} % of it, so these figures are too low.",
                100.0 * elsewhere
            );
        }
        Ok(())
    }

    /// # Errors
    /// When rows are missing.
    pub fn verdict(&self) -> Result<()> {
        for round in &self.rounds {
            ensure!(round.lost == 0, "{} lost {} rows", round.engine.shown(), round.lost);
        }
        Ok(())
    }

    fn of(&self, engine: Name, shape: Shape) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.engine == engine && round.shape == shape)
    }

    fn medians(&self) -> String {
        let header =
            ["DRAIN", "SHAPE", "ROWS/S", "TO DEBEZIUM", "ENGINE CPU", "WALSENDER", "KAFKA", "PEAK MIB"];
        let mut table = figures::table(&header);
        for shape in [Shape::Batches, Shape::Singles] {
            let rate = |engine| median_of(self.of(engine, shape), |round| round.rows_per_second);
            let peer = rate(Name::Debezium);
            for engine in [Name::Limit, Name::Relay, Name::Debezium] {
                let Some(rows) = rate(engine) else { continue };
                let cost = |of: fn(&Costs) -> f64| {
                    let median = median_of(self.of(engine, shape), |round| of(&round.costs));
                    median.map_or_else(dash, |seconds| format!("{seconds:.1}"))
                };
                let peak = self.of(engine, shape).map(|round| round.peak_mib).fold(0.0, f64::max);
                table.add_row([
                    engine.shown().to_owned(),
                    shape.to_string(),
                    format!("{rows:.0}"),
                    peer.map_or_else(dash, |peer| format!("{:.2}", rows / peer)),
                    cost(|costs| costs.engine),
                    cost(|costs| costs.walsender),
                    if engine == Name::Limit { dash() } else { cost(|costs| costs.kafka) },
                    format!("{peak:.0}"),
                ]);
            }
        }
        table.trim_fmt()
    }

    fn all_rounds(&self) -> String {
        let mut table =
            figures::table(&["EVERY ROUND", "SHAPE", "ROUND", "ROWS/S", "ENGINE CPU", "ELSEWHERE"]);
        for round in &self.rounds {
            table.add_row([
                round.engine.shown().to_owned(),
                round.shape.to_string(),
                round.round.to_string(),
                format!("{:.0}", round.rows_per_second),
                format!("{:.1}", round.costs.engine),
                format!("{:.0} %", 100.0 * round.costs.elsewhere),
            ]);
        }
        table.trim_fmt()
    }

    fn latency_table(&self) -> String {
        let header = [
            "MILLISECONDS",
            "RATE/S",
            "COMMIT P50",
            "P99",
            "MAX",
            "WRITE P50",
            "P99",
            "MAX",
            "CORES",
            "PEAK MIB",
        ];
        let mut table = figures::table(&header);
        for latency in &self.latencies {
            let mut row = vec![latency.engine.shown().to_owned(), format!("{:.0}", latency.rate)];
            for Summary { p50_ms, p99_ms, max_ms, .. } in [latency.commit, latency.write] {
                row.extend([p50_ms, p99_ms, max_ms].map(|ms| format!("{ms:.2}")));
            }
            row.extend([format!("{:.3}", latency.cores), format!("{:.0}", latency.peak_mib)]);
            table.add_row(row);
        }
        table.trim_fmt()
    }
}
