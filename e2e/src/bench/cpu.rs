//! Processor seconds by process, from /proc: the stack's, grouped by what they are, and our own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use stack::process::{self, ProcessId, Stat};
use stack::shards::FurtherShard;

/// The benchmark itself: HTTP client, reader of the topic, and, for the floor, the SQL client.
pub const GENERATOR: &str = "generator";
/// Busy time of the kernel that no other group used: kernel threads and other programs.
pub const ELSEWHERE: &str = "elsewhere on the machine";
pub const BACKENDS: &str = "postgres backends";
const OTHER: &str = "postgres rest";
const POSTGRES: &str = "postgres";

#[derive(Deserialize)]
struct State {
    children: Vec<Child>,
}

#[derive(Clone, Deserialize)]
struct Child {
    name: String,
    id: ProcessId,
}

/// Reads the clocks of one stack.
#[derive(Clone)]
pub struct Meter {
    children: Vec<Child>,
}

/// Clocks at one moment, in ticks.
pub struct Sample {
    processes: HashMap<ProcessId, (String, i64)>,
    busy: i64,
    all: i64,
}

/// Seconds between two moments.
#[derive(Clone, Debug, Default)]
pub struct CpuTime {
    pub seconds: BTreeMap<String, f64>,
    /// Seconds of all processors, over the same time.
    pub capacity: f64,
}

impl Meter {
    /// # Errors
    /// When the stack in `dir` is not up, wholly.
    pub fn of_stack(dir: &Path) -> Result<Self> {
        let services = ["payments-svc", "balance-svc", "processor-svc", "cdc-relay"];
        Self::read(dir, &[&[POSTGRES, "kafka", "rabbitmq"], services.as_slice()].concat())
    }

    /// # Errors
    /// When Postgres or Kafka of the stack in `dir` is not up.
    pub fn of_servers(dir: &Path) -> Result<Self> {
        Self::read(dir, &[POSTGRES, "kafka"])
    }

    /// The same, and a process that is not the stack's.
    #[must_use]
    pub fn and(&self, name: &str, id: ProcessId) -> Self {
        let mut children = self.children.clone();
        children.push(Child { name: name.to_owned(), id });
        Self { children }
    }

    fn read(dir: &Path, wanted: &[&str]) -> Result<Self> {
        let path = dir.join("state.json");
        let hint = "the stack is not up: cargo stack up";
        let text = fs::read_to_string(&path).with_context(|| format!("no {}; {hint}", path.display()))?;
        let State { children } = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(!children.is_empty(), "{hint}");
        for child in &children {
            ensure!(child.id.alive(), "{} does not run; {hint}", child.name);
        }
        for name in wanted {
            ensure!(children.iter().any(|child| child.name == *name), "{name} does not run; {hint}");
        }
        Ok(Self { children })
    }

    /// Resident memory of a child and its family, in bytes.
    pub fn memory_bytes(&self, name: &str) -> Result<u64> {
        let child = self.children.iter().find(|child| child.name == name);
        let child = child.with_context(|| format!("{name} is no process of the stack"))?;
        Ok(process::usage(&process::all(), child.id).memory_bytes)
    }

    pub fn sample(&self) -> Sample {
        let all = process::all();
        let mut processes = HashMap::new();
        let me = ProcessId::me();
        for stat in &all {
            if Some(stat.id) == me {
                processes.insert(stat.id, (GENERATOR.to_owned(), ticks(stat)));
            }
        }
        for child in &self.children {
            let members: HashSet<ProcessId> = process::family(&all, &[child.id]).into_iter().collect();
            for stat in all.iter().filter(|stat| members.contains(&stat.id)) {
                let group = if FurtherShard::is_server(&child.name) {
                    postgres_group(&title(stat.id.pid))
                } else {
                    service(&child.name).to_owned()
                };
                processes.insert(stat.id, (group, ticks(stat)));
            }
        }
        let (busy, all) = machine();
        Sample { processes, busy, all }
    }
}

impl Sample {
    /// Seconds of each group from `before` until now.
    pub fn since(&self, before: &Self) -> CpuTime {
        let mut ticks: BTreeMap<&str, i64> = BTreeMap::new();
        for (id, (group, now)) in &self.processes {
            let then = before.processes.get(id).map_or(0, |(_, then)| *then);
            *ticks.entry(group).or_default() += *now - then;
        }
        for (id, (group, then)) in &before.processes {
            // A process that ended: its parent inherited all of its time, also what was counted before.
            if !self.processes.contains_key(id) {
                let parent = if group.starts_with(POSTGRES) { OTHER } else { group };
                *ticks.entry(parent).or_default() -= then;
            }
        }
        let known: i64 = ticks.values().sum();
        ticks.insert(ELSEWHERE, self.busy - before.busy - known);
        CpuTime {
            seconds: ticks.into_iter().map(|(group, ticks)| (group.to_owned(), in_seconds(ticks))).collect(),
            capacity: in_seconds(self.all - before.all),
        }
    }
}

impl CpuTime {
    pub fn add(&mut self, other: &Self) {
        for (group, seconds) in &other.seconds {
            *self.seconds.entry(group.clone()).or_default() += seconds;
        }
        self.capacity += other.capacity;
    }

    /// Seconds of one group.
    pub fn of(&self, group: &str) -> f64 {
        self.seconds.get(group).copied().unwrap_or_default()
    }

    /// Share of all processors used by processes that are neither the stack's nor ours.
    pub fn elsewhere(&self) -> f64 {
        self.of(ELSEWHERE) / self.capacity.max(f64::MIN_POSITIVE)
    }

    /// Share of all processors that was busy.
    pub fn busy(&self) -> f64 {
        self.seconds.values().sum::<f64>() / self.capacity.max(f64::MIN_POSITIVE)
    }
}

fn ticks(stat: &Stat) -> i64 {
    i64::try_from(stat.cpu_ticks).unwrap_or(i64::MAX)
}

fn in_seconds(ticks: i64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64
}

/// Its instances are counted together: `payments-svc-2` is payments-svc.
fn service(child: &str) -> &str {
    match child.rsplit_once('-') {
        Some((service, nth)) if nth.parse::<u16>().is_ok() => service,
        Some(_) | None => child,
    }
}

/// By the title Postgres gives its processes: `postgres: walsender coro_relay …`, `postgres: payments_svc payments …`.
fn postgres_group(title: &str) -> String {
    let mut parts = title.strip_prefix("postgres: ").unwrap_or_default().split(' ');
    match parts.next() {
        Some("walsender") => "postgres walsenders".to_owned(),
        Some(role) if sql::ROLES.iter().any(|known| known.name == role) => format!("{BACKENDS} {role}"),
        _ => OTHER.to_owned(),
    }
}

fn title(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}

/// Busy and all ticks of the machine.
fn machine() -> (i64, i64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    let ticks: Vec<i64> =
        line.split_whitespace().skip(1).take(8).filter_map(|tick| tick.parse().ok()).collect();
    let idle = ticks.iter().skip(3).take(2).sum::<i64>();
    let all = ticks.iter().sum::<i64>();
    (all - idle, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(processes: &[(i32, &str, i64)], busy: i64) -> Sample {
        let entry = |(pid, group, ticks): &(i32, &str, i64)| {
            (ProcessId { pid: *pid, start: 1 }, ((*group).to_owned(), *ticks))
        };
        Sample { processes: processes.iter().map(entry).collect(), busy, all: 2 * busy }
    }

    #[test]
    fn the_earlier_time_of_an_ended_backend_is_not_counted_again() {
        let before = sample(&[(1, OTHER, 100), (2, "postgres backends x", 50)], 1000);
        // Backend 2 used 7 more and ended: its parent inherited 57; backend 3 is new.
        let after = sample(&[(1, OTHER, 157), (3, "postgres backends x", 5)], 1020);
        let cpu_time = after.since(&before);
        let ticks =
            |group: &str| (cpu_time.seconds[group] * rustix::param::clock_ticks_per_second() as f64).round();
        assert_eq!((ticks(OTHER), ticks("postgres backends x"), ticks(ELSEWHERE)), (7.0, 5.0, 8.0));
        assert!((cpu_time.busy() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn instances_of_a_service_are_counted_together() {
        let names = ["payments-svc", "payments-svc-2", "cdc-relay", "redis"].map(service);
        assert_eq!(names, ["payments-svc", "payments-svc", "cdc-relay", "redis"]);
    }

    #[test]
    fn postgres_processes_by_title() {
        let groups = [
            "postgres: walsender coro_relay 127.0.0.1(1) START_REPLICATION",
            "postgres: payments_svc payments 127.0.0.1(1) idle",
            "postgres: checkpointer ",
            "/usr/lib/postgresql/15/bin/postgres\0-D",
        ]
        .map(postgres_group);
        assert_eq!(groups, ["postgres walsenders", "postgres backends payments_svc", OTHER, OTHER]);
    }
}
