//! Processes as /proc shows them. A pid alone names nobody: it is reused, so a process is its pid and start time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::spec::MEMBER;

/// One process for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub start: u64,
}

/// A line of /proc/PID/stat, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub id: ProcessId,
    pub parent: i32,
    pub session: i32,
    pub zombie: bool,
    /// User and system time, that of its waited-for children included.
    pub cpu_ticks: u64,
}

impl Stat {
    /// Reads a process; `None` when there is none.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command may contain spaces and parentheses, so fields are counted from the last one.
    fn parse(line: &str) -> Option<Self> {
        let pid = line.split(' ').next()?.parse().ok()?;
        let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
        // fields[0] is field 3 of proc(5).
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            id: ProcessId { pid, start: number(22)? },
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
            cpu_ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        })
    }
}

impl ProcessId {
    pub fn of(pid: i32) -> Option<Self> {
        Stat::read(pid).map(|stat| stat.id)
    }

    pub fn me() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it still runs; one that waits to be reaped does not.
    pub fn alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.id == self && !stat.zombie)
    }

    /// Signals it and nobody else: the descriptor pins the process before its start time is compared.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        let Ok(descriptor) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
        Self::of(self.pid) == Some(self) && rustix::process::pidfd_send_signal(&descriptor, signal).is_ok()
    }
}

/// Every process that can be seen.
pub fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| Stat::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The leaders, their descendants, and everything in the session of any of them.
///
/// A session keeps its number from being reused, so members of a dead leader's session are still its own
/// unless a younger process has the leader's pid.
pub fn family(processes: &[Stat], leaders: &[ProcessId]) -> Vec<ProcessId> {
    let by_pid: HashMap<i32, &Stat> = processes.iter().map(|stat| (stat.id.pid, stat)).collect();
    let mut sessions: HashSet<i32> = HashSet::new();
    let mut members: HashSet<i32> = HashSet::new();
    for leader in leaders {
        match by_pid.get(&leader.pid) {
            Some(stat) if stat.id != *leader => {}
            Some(_) => {
                members.insert(leader.pid);
                sessions.insert(leader.pid);
            }
            None => {
                sessions.insert(leader.pid);
            }
        }
    }
    let oldest = leaders.iter().map(|leader| leader.start).min().unwrap_or(0);
    loop {
        let before = members.len();
        for stat in processes {
            let related = members.contains(&stat.parent) || sessions.contains(&stat.session);
            if related && stat.id.start >= oldest {
                members.insert(stat.id.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    processes
        .iter()
        .filter(|stat| members.contains(&stat.id.pid) && !stat.zombie)
        .map(|stat| stat.id)
        .collect()
}

/// A variable of the environment that a process was started with, if that can be read.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut entries = environ.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    entries.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// Processes that carry the mark of this stack, or are Postgres processes at home in the folder of its data
/// (Postgres overwrites its environment with the process title).
pub fn marked(processes: &[Stat], member: &str, data: &Path) -> Vec<ProcessId> {
    let has_mark = |pid: i32| variable(pid, MEMBER).as_deref() == Some(member);
    let is_postgres = |pid: i32| {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
        link("exe").file_name().is_some_and(|name| name == "postgres") && link("cwd").starts_with(data)
    };
    let found = |stat: &&Stat| !stat.zombie && (has_mark(stat.id.pid) || is_postgres(stat.id.pid));
    processes.iter().filter(found).map(|stat| stat.id).collect()
}

/// SIGKILL to all of them, and again to whatever `find` still finds, until nothing is left or time is up.
pub fn kill_until_gone(limit: Duration, find: impl Fn() -> Vec<ProcessId>) -> Vec<ProcessId> {
    let deadline = Instant::now() + limit;
    loop {
        let left: Vec<_> = find().into_iter().filter(|id| id.alive()).collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        for id in &left {
            id.signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Resources that a family of processes uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Resident memory; pages shared between processes are counted once (proportional set size).
    pub memory_bytes: u64,
    pub cpu_seconds: f64,
}

/// Adds up the leader and its descendants.
pub fn usage(processes: &[Stat], leader: ProcessId) -> Usage {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let members: HashSet<i32> = family(processes, &[leader]).into_iter().map(|id| id.pid).collect();
    let mut usage = Usage::default();
    for stat in processes.iter().filter(|stat| members.contains(&stat.id.pid)) {
        usage.cpu_seconds += stat.cpu_ticks as f64 / ticks_per_second as f64;
        usage.memory_bytes += memory(stat.id.pid);
    }
    usage
}

fn memory(pid: i32) -> u64 {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:")).unwrap_or(0) * 1024
}

/// Since when it runs.
pub fn uptime(id: ProcessId) -> Duration {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let up: f64 = fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or_default();
    Duration::from_secs_f64((up - id.start as f64 / ticks_per_second as f64).max(0.0))
}

/// Whether the file it runs has been replaced since it was started.
pub fn outdated(id: ProcessId) -> bool {
    fs::read_link(format!("/proc/{}/exe", id.pid))
        .is_ok_and(|exe| exe.to_string_lossy().ends_with(" (deleted)"))
}

/// The process that listens on a port of the loopback interface, if /proc shows it: pid and command.
pub fn listener(port: u16) -> Option<(i32, String)> {
    let wanted = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|file| {
        fs::read_to_string(file).ok()?.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listening = fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&wanted);
            listening.then(|| (*fields.get(9).unwrap_or(&"")).to_owned())
        })
    })?;
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    all().into_iter().find_map(|stat| {
        let pid = stat.id.pid;
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        open.flatten().find(|entry| fs::read_link(entry.path()).is_ok_and(|link| link == socket))?;
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some((pid, command.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32, session: i32, start: u64) -> Stat {
        Stat { id: ProcessId { pid, start }, parent, session, zombie: false, cpu_ticks: 0 }
    }

    #[test]
    fn the_command_may_contain_anything() {
        let line = "42 (a) b (c)) S 7 42 41 0 -1 4194560 1 0 0 0 5 6 1 2 20 0 1 0 777 1 1";
        let parsed = Stat::parse(line).unwrap();
        assert_eq!(parsed, Stat { cpu_ticks: 14, ..stat(42, 7, 41, 777) });
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn i_am_alive_and_nobody_with_my_pid_was_before_me() {
        let me = ProcessId::me().unwrap();
        assert!(me.alive());
        let earlier = ProcessId { start: me.start - 1, ..me };
        assert!(!earlier.alive());
        assert!(!earlier.signal(Signal::CONT));
    }

    #[test]
    fn a_family_is_descendants_and_session_members() {
        let processes = [
            stat(1, 0, 1, 1),
            stat(10, 1, 10, 100),
            stat(11, 10, 10, 101),
            stat(12, 11, 12, 102), // a daemon's child with a session of its own
            stat(13, 1, 10, 103),  // reparented, still in the session
            stat(20, 1, 20, 104),
        ];
        let mut pids: Vec<_> =
            family(&processes, &[ProcessId { pid: 10, start: 100 }]).iter().map(|id| id.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [10, 11, 12, 13]);
    }

    #[test]
    fn a_reused_pid_has_no_family_of_ours() {
        let processes = [stat(10, 1, 10, 500), stat(11, 10, 10, 501)];
        assert!(family(&processes, &[ProcessId { pid: 10, start: 100 }]).is_empty());
    }

    #[test]
    fn a_dead_leader_still_has_its_session() {
        let processes = [stat(1, 0, 1, 1), stat(11, 1, 10, 101)];
        let found = family(&processes, &[ProcessId { pid: 10, start: 100 }]);
        assert_eq!(found, [ProcessId { pid: 11, start: 101 }]);
    }
}
