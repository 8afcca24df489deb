//! The tables of docs/SCALE.md.

use super::losses::{self, Loss};
use super::{
    COSTS, DAYS_KEPT, Fleet, INSTANCE_CORES, MEASURED, MEASURED_RATE, MEASURED_SHARDS, OTHER_CONNECTIONS,
    PEAK_FACTOR, POOLS, Part, RATES, ROW_BYTES, SECONDS_PER_DAY, SERVER_BYTES, SERVER_CORES, UTILISATION,
    cores, seconds,
};

const VOLUMES: [f64; 3] = [1e6, 1e8, 1e9];

/// All tables, in their order.
pub fn all() -> Vec<String> {
    vec![costs(), checked(), volumes(), limits(), losses_of_one()]
}

/// Processor seconds per 1,000 payments by part, at the measured rates and at some between.
pub fn costs() -> String {
    let rates = [RATES[0], RATES[1], 500.0, 1000.0, RATES[2]];
    let row = |name: &str, parts: &[Part]| {
        let cell = |rate: &f64| {
            let of_parts = COSTS.iter().filter(|cost| parts.contains(&cost.part));
            format!("{:.2}", of_parts.map(|cost| 1000.0 * seconds(cost, *rate)).sum::<f64>())
        };
        format!("| {name} | {} |", rates.iter().map(cell).collect::<Vec<_>>().join(" | "))
    };
    let mut lines = vec![
        "| CPU seconds per 1,000 payments | 50/s | 200/s | 500/s | 1,000/s | 1,844/s |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for (name, part) in PARTS {
        lines.push(row(name, &[part]));
    }
    lines.push(row("all", &PARTS.map(|(_, part)| part)));
    lines.join("\n")
}

/// The model beside the measurement with several shards.
pub fn checked() -> String {
    let line = |name: &str, parts: &[Part]| {
        let of = |part: &Part| {
            MEASURED.iter().find(|(of, _)| of == part).map_or([0.0; 3], |(_, seconds)| *seconds)
        };
        let cell = |(nth, shards): (usize, &f64)| {
            let model: f64 = parts.iter().map(|part| cores(*part, MEASURED_RATE, *shards)).sum();
            let measured: f64 = parts.iter().map(|part| of(part)[nth]).sum();
            format!("{:.2} and {measured:.2}", model / MEASURED_RATE * 1000.0)
        };
        format!(
            "| {name} | {} |",
            MEASURED_SHARDS.iter().enumerate().map(cell).collect::<Vec<_>>().join(" | ")
        )
    };
    let mut lines = vec![
        "| model and measurement, 200/s in all | 1 shard | 2 shards | 4 shards |".to_owned(),
        "|---|---|---|---|".to_owned(),
    ];
    lines.extend(PARTS.iter().map(|(name, part)| line(name, &[*part])));
    lines.push(line("all", &PARTS.map(|(_, part)| part)));
    lines.join("\n")
}

const PARTS: [(&str, Part); 6] = [
    ("Postgres, with walsenders", Part::Postgres),
    ("the three services", Part::Services),
    ("cdc-relay", Part::Relay),
    ("Kafka", Part::Kafka),
    ("RabbitMQ", Part::RabbitMq),
    ("Redis, rest of Postgres", Part::Redis),
];

/// Machines and money.
pub fn volumes() -> String {
    let fleets = VOLUMES.map(Fleet::of);
    let row = |name: &str, cell: &dyn Fn(&Fleet) -> String| {
        format!("| {name} | {} |", fleets.iter().map(cell).collect::<Vec<_>>().join(" | "))
    };
    let busy = |fleet: &Fleet, part: Part| cores(part, fleet.peak, fleet.shards);
    let all = |fleet: &Fleet| PARTS.iter().map(|(_, part)| busy(fleet, *part)).sum::<f64>();
    [
        "| payments a day | 1 M | 100 M | 1 B |".to_owned(),
        "|---|---|---|---|".to_owned(),
        row("payments per second at the peak", &|f| figure(f.peak)),
        row("rows after a year, one copy", &|f| bytes(f.row_bytes)),
        row("shards", &|f| figure(f.shards)),
        row("rows of the largest shard", &|f| bytes(losses::largest(f.shards as usize) * f.row_bytes)),
        row("payments per second and shard at the peak", &|f| figure(f.peak / f.shards)),
        row("busy cores at the peak", &|f| figure(all(f))),
        row("of these Postgres", &|f| figure(busy(f, Part::Postgres))),
        row("WAL per second and shard, cold", &|f| bytes(f.wal_bytes_per_second())),
        row("Kafka, bytes per second in and out", &|f| bytes(f.kafka_bytes_per_second())),
        row("instances of the services, two cores each", &|f| figure(f.instances)),
        row("connections to each shard's server", &|f| figure(f.connections())),
        row("cores to buy", &|f| figure(f.cores())),
        row("disk to buy", &|f| bytes(f.disk_bytes())),
        row("dollars a month", &|f| figure(f.price())),
        row("dollars per 1,000 payments", &|f| format!("{:.4}", f.price() / (f.per_day * 30.0) * 1000.0)),
    ]
    .join("\n")
}

/// One thing that there is only so much of.
struct Limit {
    name: &'static str,
    formula: &'static str,
    /// Payments a day.
    per_day: f64,
}

/// Payments a day at a peak of so many per second.
fn per_day(peak: f64) -> f64 {
    peak * SECONDS_PER_DAY / PEAK_FACTOR
}

/// What breaks first, without shards: the lowest comes first.
pub fn limits() -> String {
    let fast = |part: Part| {
        COSTS.iter().filter(|cost| cost.part == part).map(|cost| seconds(cost, RATES[2])).sum::<f64>()
    };
    let instances = (200.0 - OTHER_CONNECTIONS) / POOLS;
    let mut limits = [
        Limit {
            name: "rows of a year on one server",
            formula: "8 TB / (bytes of a payment × 365)",
            per_day: SERVER_BYTES / (ROW_BYTES * DAYS_KEPT),
        },
        Limit {
            name: "the work queue: a quorum queue is one process on one core",
            formula: "1 core / CPU of RabbitMQ",
            per_day: per_day(1.0 / fast(Part::RabbitMq)),
        },
        Limit {
            name: "one server of 8 cores for the three databases",
            formula: "8 cores × ½ / CPU of Postgres",
            per_day: per_day(SERVER_CORES * UTILISATION / fast(Part::Postgres)),
        },
        Limit {
            name: "the relay, one core for all sources",
            formula: "1 core / CPU of cdc-relay",
            per_day: per_day(1.0 / fast(Part::Relay)),
        },
        Limit {
            name: "connections to one server, 200 as in a stack",
            formula: "(200 − 30) / pools × 3 instances × 2 cores × ½ / CPU of the services",
            per_day: per_day(instances * 3.0 * INSTANCE_CORES * UTILISATION / fast(Part::Services)),
        },
    ];
    limits.sort_by(|a, b| a.per_day.total_cmp(&b.per_day));
    let row =
        |limit: &Limit| format!("| {} | {} | {} M |", limit.name, limit.formula, figure(limit.per_day / 1e6));
    let head = "| what there is only so much of | formula | payments a day |\n|---|---|---|".to_owned();
    [head].into_iter().chain(limits.iter().map(row)).collect::<Vec<_>>().join("\n")
}

/// The users who notice that one shard is away, or a third of them.
pub fn losses_of_one() -> String {
    let row = |loss: &Loss| {
        format!(
            "| {} | {} to {} | {:.1} % | {:.1} % |",
            loss.shards,
            loss.buckets_min,
            loss.buckets_max,
            100.0 * loss.one_away,
            100.0 * loss.region_away
        )
    };
    let head = "| shards | buckets of a shard | users without service, one shard away | a region with a third of the primaries away |
|---|---|---|---|"
        .to_owned();
    let losses = [1, 2, 4, 16, 64, 256].map(losses::simulate);
    [head].into_iter().chain(losses.iter().map(row)).collect::<Vec<_>>().join("\n")
}

/// Three digits that count, in groups of three.
fn figure(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.1}").trim_end_matches(".0").to_owned();
    }
    let digits = if value < 100.0 { 0 } else { value.log10() as i32 - 2 };
    let step = 10_f64.powi(digits);
    let text = format!("{:.0}", (value / step).round() * step);
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn bytes(value: f64) -> String {
    let units = [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")];
    let (unit, name) = units.into_iter().find(|(unit, _)| value >= *unit).unwrap_or((1e3, "kB"));
    format!("{} {name}", figure(value / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_that_count() {
        for (value, text) in [
            (0.96, "1"),
            (4.26, "4.3"),
            (46.3, "46"),
            (4629.6, "4,630"),
            (46_296.3, "46,300"),
            (1_234_567.0, "1,230,000"),
        ] {
            assert_eq!(figure(value), text);
        }
        assert_eq!(
            (bytes(7.56e13), bytes(2.1e9), bytes(1500.0)),
            ("76 TB".into(), "2.1 GB".into(), "1.5 kB".into())
        );
    }
}
