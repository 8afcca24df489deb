//! The capacity model: machines and money for so many payments a day, from what a payment was measured to cost.
//!
//! * Inputs are constants: measured ones name their place in docs/BENCHMARKS.md, the others are estimates and say so.
//! * Each formula is one function. [`tables`] writes the tables of docs/SCALE.md, and a test holds the document to them.
//! * Another installation changes the constants, runs the test, and reads its own tables in the failure.

pub mod losses;
pub mod tables;

const SECONDS_PER_DAY: f64 = 86_400.0;

/// A process or a group of them, with its processor seconds per 1,000 payments at three rates.
pub struct Cost {
    pub name: &'static str,
    pub part: Part,
    /// At each of [`RATES`].
    pub seconds: [f64; 3],
}

/// What a cost grows with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Runs on the database server of each shard.
    Postgres,
    /// Any number of instances.
    Services,
    Relay,
    Kafka,
    RabbitMq,
    Redis,
}

impl Part {
    /// By what the rate of the whole is divided for the rate that decides how many payments share a wake-up. Each shard's server has
    /// its own; the relay is one process that reads each of them, measured in between; whatever has no shards goes by the whole.
    fn divisor(self, shards: f64) -> f64 {
        match self {
            Self::Postgres => shards,
            Self::Relay => shards.sqrt(),
            Self::Services | Self::Kafka | Self::RabbitMq | Self::Redis => 1.0,
        }
    }
}

/// Payments per second of the three measurements.
pub const RATES: [f64; 3] = [50.0, 200.0, 1844.0];

const fn cost(name: &'static str, part: Part, low: f64, middle: f64, high: f64) -> Cost {
    Cost { name, part, seconds: [low, middle, high] }
}

/// Measured: docs/BENCHMARKS.md, "The saga". Without the generator and the simulated gateway.
pub const COSTS: [Cost; 11] = [
    cost("kafka", Part::Kafka, 4.32, 1.74, 0.171),
    cost("payments-svc", Part::Services, 1.61, 0.85, 0.103),
    cost("postgres backends, payments", Part::Postgres, 1.45, 0.84, 0.100),
    cost("cdc-relay", Part::Relay, 2.03, 0.77, 0.099),
    cost("processor-svc", Part::Services, 1.34, 0.65, 0.098),
    cost("postgres walsenders", Part::Postgres, 1.49, 0.55, 0.093),
    cost("rabbitmq", Part::RabbitMq, 1.36, 0.67, 0.090),
    cost("postgres backends, balance", Part::Postgres, 1.31, 0.59, 0.072),
    cost("balance-svc", Part::Services, 1.51, 0.56, 0.050),
    cost("postgres backends, processor", Part::Postgres, 0.99, 0.47, 0.048),
    cost("redis, rest of postgres", Part::Redis, 6.73, 0.30, 0.033),
];

/// Bytes that one payment leaves, with indexes, in the three databases. Measured: 521 of a charge. Estimates: 670 of a payment
/// (fillfactor 45), 320 of two ledger entries, 560 of eight index entries.
pub const ROW_BYTES: f64 = 521.0 + 670.0 + 320.0 + 560.0;
/// Bytes of WAL of one payment while no page is written for the first time since a checkpoint. An estimate, from the widths of nine
/// row changes and eight index entries.
pub const WAL_BYTES_WARM: f64 = 2_900.0;
/// The same when each index entry and the account fall on a page of their own, which is then in the WAL whole: what many users
/// come to. An estimate, without wal_compression.
pub const WAL_BYTES_COLD: f64 = WAL_BYTES_WARM + 9.0 * 8_192.0;
/// Bytes of the bodies of one payment's six events: the golden files of `saga/golden`.
pub const EVENT_BODY_BYTES: f64 = 2_726.0;
/// Records on Kafka of one payment, and the bytes of the key and the ten headers of each. An estimate, from names and usual values.
pub const RECORDS: f64 = 6.0;
pub const RECORD_HEADER_BYTES: f64 = 440.0;
/// Groups that read the events: three services and five consumers, most of them one topic. An estimate.
pub const READERS: f64 = 5.0;
/// Copies of each record, and nodes of each shard.
pub const COPIES: f64 = 3.0;

/// The busiest second to the mean of the day. An estimate.
pub const PEAK_FACTOR: f64 = 4.0;
/// The part of a machine that is used at the peak.
pub const UTILISATION: f64 = 0.5;
/// A database server: cores, and bytes of data that can be backed up and restored within hours. Choices.
pub const SERVER_CORES: f64 = 8.0;
pub const SERVER_BYTES: f64 = 8e12;
pub const DAYS_KEPT: f64 = 365.0;
pub const KAFKA_DAYS_KEPT: f64 = 7.0;
pub const INSTANCE_CORES: f64 = 2.0;
/// `POOL_SIZE` of the three services, and of the relay, exporters and operators together.
pub const POOLS: f64 = 8.0 + 8.0 + 6.0;
pub const OTHER_CONNECTIONS: f64 = 30.0;
/// Money a month, in dollars: a core with 4 GiB of memory, a gigabyte of disk. Estimates; fill in your own.
pub const CORE_PRICE: f64 = 30.0;
pub const GIGABYTE_PRICE: f64 = 0.10;

/// Payments per second at the peak.
pub fn peak(per_day: f64) -> f64 {
    per_day / SECONDS_PER_DAY * PEAK_FACTOR
}

/// Processor seconds of one payment at `rate` payments per second: between the measurements a straight line in
/// logarithms, beyond the last as there.
pub fn seconds(cost: &Cost, rate: f64) -> f64 {
    let at = |n: usize| (RATES[n].ln(), cost.seconds[n].ln());
    let ((x0, y0), (x1, y1)) = if rate < RATES[1] { (at(0), at(1)) } else { (at(1), at(2)) };
    let x = rate.clamp(RATES[0], RATES[2]).ln();
    (y0 + (y1 - y0) * (x - x0) / (x1 - x0)).exp() / 1000.0
}

/// Cores that are busy with `rate` payments per second on `shards` shards. Below the lowest measured rate a process costs what it
/// costs there: that is nearly all wake-ups.
pub fn cores(part: Part, rate: f64, shards: f64) -> f64 {
    let divisor = part.divisor(shards);
    let each = (rate / divisor).max(RATES[0]);
    let of_part = COSTS.iter().filter(|cost| cost.part == part);
    of_part.map(|cost| divisor * each * seconds(cost, each)).sum()
}

/// Processor seconds per 1,000 payments at [`MEASURED_RATE`] in all, with 1, 2 and 4 shards. Measured: docs/BENCHMARKS.md, "Shards".
pub const MEASURED: [(Part, [f64; 3]); 6] = [
    (Part::Postgres, [2.47, 2.52, 2.75]),
    (Part::Services, [1.95, 1.91, 1.79]),
    (Part::Relay, [0.63, 0.72, 0.88]),
    (Part::Kafka, [2.01, 1.96, 1.64]),
    (Part::RabbitMq, [0.52, 0.51, 0.49]),
    (Part::Redis, [0.20, 0.38, 0.93]),
];
pub const MEASURED_RATE: f64 = 200.0;
pub const MEASURED_SHARDS: [f64; 3] = [1.0, 2.0, 4.0];

/// Machines for so many payments a day.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    pub per_day: f64,
    /// Payments per second at the peak.
    pub peak: f64,
    pub shards: f64,
    /// Of the rows on all shards, once.
    pub row_bytes: f64,
    pub instances: f64,
    pub kafka_bytes: f64,
}

impl Fleet {
    pub fn of(per_day: f64) -> Self {
        let peak = peak(per_day);
        let row_bytes = per_day * DAYS_KEPT * ROW_BYTES;
        let shards = shards(peak, row_bytes);
        let instances = (cores(Part::Services, peak, shards) / UTILISATION / INSTANCE_CORES).ceil();
        // Two of each of the three services at least.
        let instances = instances.max(6.0);
        let record_bytes = EVENT_BODY_BYTES + RECORDS * RECORD_HEADER_BYTES;
        Self {
            per_day,
            peak,
            shards,
            row_bytes,
            instances,
            kafka_bytes: per_day * KAFKA_DAYS_KEPT * record_bytes,
        }
    }

    /// Cores to buy: each shard has three nodes with the cores of its peak, four at least; brokers and Redis three nodes of two
    /// cores at least.
    pub fn cores(&self) -> f64 {
        let bought = |part| cores(part, self.peak, self.shards) / UTILISATION;
        let each_node = (bought(Part::Postgres) / self.shards).max(4.0);
        let nodes: f64 =
            [Part::Kafka, Part::RabbitMq, Part::Redis].map(|part| bought(part).max(6.0)).iter().sum();
        COPIES * self.shards * each_node
            + self.instances * INSTANCE_CORES
            + bought(Part::Relay).max(4.0)
            + nodes
    }

    /// Bytes of disk to buy.
    pub fn disk_bytes(&self) -> f64 {
        COPIES * (self.row_bytes + self.kafka_bytes) / UTILISATION
    }

    /// Dollars a month.
    pub fn price(&self) -> f64 {
        self.cores() * CORE_PRICE + self.disk_bytes() / 1e9 * GIGABYTE_PRICE
    }

    /// Connections to the server of one shard: each instance has a pool for each shard.
    pub fn connections(&self) -> f64 {
        self.instances / 3.0 * POOLS + OTHER_CONNECTIONS
    }

    /// Bytes per second that leave and enter Kafka at the peak.
    pub fn kafka_bytes_per_second(&self) -> f64 {
        let record_bytes = EVENT_BODY_BYTES + RECORDS * RECORD_HEADER_BYTES;
        self.peak * record_bytes * (COPIES + READERS)
    }

    /// Bytes of WAL per second of one shard at the peak.
    pub fn wal_bytes_per_second(&self) -> f64 {
        self.peak / self.shards * WAL_BYTES_COLD
    }
}

/// As many shards as the peak and the rows need. Rendezvous hashing does not fill them alike: the largest has to fit its server.
fn shards(peak: f64, row_bytes: f64) -> f64 {
    let mut shards = (row_bytes / SERVER_BYTES).ceil().max(1.0);
    loop {
        let largest = losses::largest(shards as usize);
        let fits = largest * row_bytes <= SERVER_BYTES
            && cores(Part::Postgres, peak, shards) * largest <= SERVER_CORES * UTILISATION;
        if fits {
            return shards;
        }
        shards = (shards * 1.1).ceil();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn document(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
    }

    #[test]
    fn costs_are_those_of_the_benchmarks() {
        let benchmarks = document("docs/BENCHMARKS.md");
        for cost in &COSTS {
            let row = benchmarks.lines().find(|line| line.starts_with(&format!("| {} |", cost.name)));
            let cells: Vec<&str> =
                row.unwrap_or_else(|| panic!("no row of {}", cost.name)).split('|').collect();
            let figures: Vec<f64> = cells.iter().filter_map(|cell| cell.trim().parse().ok()).collect();
            // closed, floor, 50/s, 200/s
            let [high, _, low, middle] = figures[..] else { panic!("{cells:?}") };
            assert_eq!(cost.seconds, [low, middle, high], "{}", cost.name);
        }
    }

    #[test]
    fn bodies_are_those_of_the_contract() {
        let events = [
            "payment.initiated",
            "balance.held",
            "payment.authorized",
            "payment.result.succeeded",
            "balance.captured",
            "payment.completed",
        ];
        let bytes: usize =
            events.iter().map(|event| document(&format!("saga/golden/{event}.v1.json")).len()).sum();
        assert_eq!((bytes as f64, events.len() as f64), (EVENT_BODY_BYTES, RECORDS));
    }

    #[test]
    fn between_measurements_costs_fall_and_at_them_they_are_met() {
        let kafka = &COSTS[0];
        for (rate, expected) in RATES.iter().zip(kafka.seconds) {
            assert!((seconds(kafka, *rate) * 1000.0 - expected).abs() < 1e-9, "{rate}");
        }
        assert!(
            seconds(kafka, 100.0) < seconds(kafka, 50.0) && seconds(kafka, 500.0) > seconds(kafka, 1844.0)
        );
        assert_eq!(seconds(kafka, 10.0), seconds(kafka, 50.0));
    }

    #[test]
    fn the_model_is_not_below_what_several_shards_were_measured_to_cost() {
        for (nth, shards) in MEASURED_SHARDS.iter().enumerate() {
            let model: f64 = MEASURED.iter().map(|(part, _)| cores(*part, MEASURED_RATE, *shards)).sum();
            let model = model / MEASURED_RATE * 1000.0;
            let measured: f64 = MEASURED.iter().map(|(_, seconds)| seconds[nth]).sum();
            // The two were measured on different days.
            assert!(
                (0.95..1.4).contains(&(model / measured)),
                "{shards} shards: {model:.2} and {measured:.2}"
            );
        }
    }

    #[test]
    fn more_shards_cost_more_wake_ups_and_a_fleet_fits_its_servers() {
        assert!(cores(Part::Postgres, 2000.0, 8.0) > cores(Part::Postgres, 2000.0, 1.0));
        assert!(cores(Part::Relay, 2000.0, 8.0) > cores(Part::Relay, 2000.0, 1.0));
        assert_eq!(cores(Part::Kafka, 2000.0, 8.0), cores(Part::Kafka, 2000.0, 1.0));
        for per_day in [1e6, 1e8, 1e9] {
            let fleet = Fleet::of(per_day);
            assert!(fleet.row_bytes / fleet.shards <= SERVER_BYTES);
            assert!(
                cores(Part::Postgres, fleet.peak, fleet.shards) / fleet.shards <= SERVER_CORES * UTILISATION
            );
        }
    }

    #[test]
    fn the_document_has_the_tables() {
        let document = document("docs/SCALE.md");
        for table in tables::all() {
            assert!(document.contains(&table), "docs/SCALE.md lacks this table:\n{table}");
        }
    }
}
