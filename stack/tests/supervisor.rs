//! Tests the supervisor with harmless children: restarts, cleanup, and processes that it leaves alone.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use stack::control::{ChildStatus, Client, Reply, Request};
use stack::process::{self, ProcessId};
use stack::spec::{Restart, Spec, StopSignal};

const STACK: &str = env!("CARGO_BIN_EXE_stack");

/// A stack of its own in a temporary folder; dropping it removes every process and file.
struct Harness {
    dir: PathBuf,
    supervisor: ProcessId,
}

impl Harness {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("stack-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("logs")).unwrap();
        let dir = dir.canonicalize().unwrap();
        let supervisor = Self::supervise(&dir);
        Self { dir, supervisor }
    }

    fn supervise(dir: &Path) -> ProcessId {
        let mut command = Command::new(STACK);
        command.args(["__supervise", "--base-port", "31000", "--dir"]).arg(dir).stdin(Stdio::null());
        let log = fs::File::create(dir.join("supervisor.log")).unwrap();
        let mut process = command.stderr(log).spawn().unwrap();
        let id = ProcessId::of(i32::try_from(process.id()).unwrap()).unwrap();
        std::thread::spawn(move || process.wait());
        until("the supervisor listens", || Client::connect(&dir.join("control.sock")).is_some());
        id
    }

    fn client(&self) -> Client {
        Client::connect(&self.dir.join("control.sock")).unwrap()
    }

    fn spec(&self, name: &str, script: &str, restart: Restart) -> Spec {
        Spec {
            name: name.to_owned(),
            argv: ["sh", "-c", script].map(str::to_owned).into(),
            env: BTreeMap::new(),
            cwd: self.dir.clone(),
            log: self.dir.join(format!("{name}.log")),
            uid: None,
            restart,
            tier: 1,
            stop_signal: StopSignal::Term,
            stop_seconds: 1,
            port: None,
        }
    }

    fn run(&self, name: &str, script: &str, restart: Restart) -> ProcessId {
        self.client().send(&Request::Run { spec: self.spec(name, script, restart) }).unwrap();
        self.child(name).id.unwrap()
    }

    /// One that does not end when it is asked to, and stops for long enough to be seen. It returns once it ignores the signal.
    fn run_deaf(&self, name: &str, restart: Restart) -> ProcessId {
        let deaf = self.dir.join("deaf");
        let script = format!("trap '' TERM; touch '{}'; while :; do sleep 0.1; done", deaf.display());
        let spec = Spec { stop_seconds: 3, ..self.spec(name, &script, restart) };
        self.client().send(&Request::Run { spec }).unwrap();
        until("it ignores the signal", || deaf.exists());
        self.child(name).id.unwrap()
    }

    fn child(&self, name: &str) -> ChildStatus {
        self.client().status().unwrap().into_iter().find(|child| child.name == name).unwrap()
    }

    /// Every process whose environment carries the mark of this stack.
    fn members(&self) -> Vec<ProcessId> {
        process::marked(&process::all(), &self.dir.display().to_string(), Path::new("/nowhere"))
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(STACK);
        command.args(arguments).env("STACK_DIR", &self.dir).env("STACK_PORT", "31000");
        command.output().unwrap()
    }

    fn kill_supervisor(&self) {
        assert!(self.supervisor.signal(rustix::process::Signal::KILL));
        until("the supervisor is gone", || !self.supervisor.alive());
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.command(&["down"]);
        let _gone = fs::remove_dir_all(&self.dir);
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SLEEP: &str = "exec sleep 1000";

#[test]
fn a_killed_service_comes_back_and_a_killed_server_does_not() {
    let harness = Harness::start("restart");
    let service = harness.run("service", SLEEP, Restart::Always);
    let server = harness.run("server", SLEEP, Restart::OnCommand);
    // From outside, as by an out-of-memory killer.
    assert!(service.signal(rustix::process::Signal::KILL));
    assert!(server.signal(rustix::process::Signal::KILL));
    until("the service is back", || harness.child("service").id.is_some_and(|id| id != service));
    assert_eq!(harness.child("service").restarts, 1);
    until("the server's end is known", || harness.child("server").state == "ended by signal 9");
    assert!(harness.child("server").id.is_none());
    harness.client().send(&Request::Start { name: "server".into() }).unwrap();
    assert!(harness.child("server").id.unwrap().alive());
}

#[test]
fn kill_takes_everything_under_a_child_sessions_of_their_own_included() {
    let harness = Harness::start("kill");
    let script = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & wait";
    harness.run("tree", script, Restart::OnCommand);
    until("the tree has grown", || harness.members().len() == 4);
    harness.client().send(&Request::Kill { name: "tree".into() }).unwrap();
    assert_eq!(harness.members(), []);
}

#[test]
fn a_process_that_outlives_its_parent_does_not_outlive_the_stack() {
    let harness = Harness::start("stray");
    let leader = harness.run("daemon", "setsid sleep 1000 & sleep 2; exit 3", Restart::OnCommand);
    until("the leader has ended", || !leader.alive());
    until("its end is known", || harness.child("daemon").state == "ended with code 3");
    until("its daemon is gone too", || harness.members().is_empty());
}

/// As Patroni leaves its PostgreSQL.
#[test]
fn a_process_that_a_child_left_ends_with_that_child_and_with_no_other() {
    let harness = Harness::start("left");
    let other = harness.run("other", SLEEP, Restart::OnCommand);
    let leaves = harness.run("leaves", "(setsid sleep 1000 &); exec sleep 1000", Restart::OnCommand);
    let is_left =
        |stat: &process::Stat| stat.parent == harness.supervisor.pid && ![other, leaves].contains(&stat.id);
    let left = || process::all().into_iter().find(is_left).map(|stat| stat.id);
    until("the supervisor has the one that it left", || left().is_some());
    let daemon = left().unwrap();
    assert!(other.signal(rustix::process::Signal::KILL));
    until("the other's end is known", || harness.child("other").id.is_none());
    assert!(daemon.alive());
    assert!(leaves.signal(rustix::process::Signal::KILL));
    until("the end of the one that left it is known", || harness.child("leaves").id.is_none());
    until("it is gone too", || harness.members().is_empty());
}

#[test]
fn a_crash_loop_backs_off() {
    let harness = Harness::start("loop");
    let spec = harness.spec("loop", "exit 1", Restart::Always);
    harness.client().send(&Request::Run { spec }).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    // 100 + 200 + 400 + 800 ms: four restarts fit into two seconds, a busy loop would make hundreds.
    let restarts = harness.child("loop").restarts;
    assert!((2..=5).contains(&restarts), "{restarts}");
    harness.client().send(&Request::Stop { name: "loop".into() }).unwrap();
    assert_eq!(harness.child("loop").state, "stopped");
}

#[test]
fn a_stopped_service_stays_stopped_also_when_it_does_not_listen() {
    let harness = Harness::start("stop");
    let id = harness.run_deaf("deaf", Restart::Always);
    harness.client().send(&Request::Stop { name: "deaf".into() }).unwrap();
    assert!(!id.alive());
    assert_eq!((harness.child("deaf").state.as_str(), harness.members().len()), ("stopped", 0));
}

#[test]
fn what_is_removed_ends_and_is_forgotten_until_it_is_run_again() {
    let harness = Harness::start("remove");
    let names = || -> Vec<String> {
        harness.client().status().unwrap().into_iter().map(|child| child.name).collect()
    };
    let remove = || harness.client().send(&Request::Remove { name: "second".into() }).unwrap();
    harness.run("first", SLEEP, Restart::Always);
    let second = harness.run("second", SLEEP, Restart::Always);
    assert!(matches!(remove(), Reply::Done { changed: true }));
    assert_eq!((second.alive(), names()), (false, vec!["first".to_owned()]));
    assert!(matches!(remove(), Reply::Done { changed: false }), "nothing is there");
    let again = harness.run("second", SLEEP, Restart::Always);
    assert!(again.alive());
    // One that is stopped already is forgotten too.
    harness.client().send(&Request::Stop { name: "second".into() }).unwrap();
    remove();
    assert_eq!(names(), ["first"]);
    // One that comes back while it ends is there as before.
    harness.run_deaf("second", Restart::Always);
    let (mut client, spec) = (harness.client(), harness.spec("second", SLEEP, Restart::Always));
    let removed =
        std::thread::spawn(move || client.send(&Request::Remove { name: "second".into() }).map(drop));
    until("it is asked to end", || harness.child("second").state == "stopping");
    harness.client().send(&Request::Run { spec }).unwrap();
    removed.join().unwrap().unwrap();
    assert!(harness.child("second").id.unwrap().alive());
}

#[test]
fn a_restart_answers_when_the_new_one_runs() {
    let harness = Harness::start("again");
    let old = harness.run("service", SLEEP, Restart::Always);
    harness.client().send(&Request::Restart { name: "service".into() }).unwrap();
    let new = harness.child("service").id.unwrap();
    assert!(new != old && new.alive() && !old.alive());
    // A service whose command has changed is replaced; the same command again is left alone.
    let changed = harness.spec("service", "exec sleep 2000", Restart::Always);
    harness.client().send(&Request::Run { spec: changed.clone() }).unwrap();
    let newer = harness.child("service").id.unwrap();
    assert_ne!(newer, new);
    let answer = harness.client().send(&Request::Run { spec: changed }).unwrap();
    assert!(matches!(answer, Reply::Done { changed: false }), "{answer:?}");
    assert_eq!(harness.child("service").id, Some(newer));
}

#[test]
fn a_service_is_replaced_by_the_program_of_another_release_and_stays_with_it() {
    let harness = Harness::start("release");
    let script = "while :; do sleep 0.1; done";
    harness.run("service", script, Restart::Always);
    let other = harness.dir.join("sh-of-another-release");
    std::os::unix::fs::symlink("/bin/sh", &other).unwrap();
    let mut spec = harness.spec("service", script, Restart::Always);
    spec.argv[0] = other.display().to_string();
    for request in [Request::Run { spec }, Request::Restart { name: "service".into() }] {
        harness.client().send(&request).unwrap();
        let id = harness.child("service").id.unwrap();
        // With the arguments that it had.
        let expected = format!("{}\0-c\0while", other.display());
        let arguments = || fs::read_to_string(format!("/proc/{}/cmdline", id.pid)).unwrap_or_default();
        until("the other program runs", || arguments().starts_with(&expected));
    }
}

#[test]
fn the_children_of_a_killed_supervisor_are_removed() {
    let harness = Harness::start("orphans");
    harness.run("service", SLEEP, Restart::Always);
    harness.run("tree", "setsid sleep 1000 & wait", Restart::OnCommand);
    until("all run", || harness.members().len() == 3);
    harness.kill_supervisor();
    assert_eq!(harness.members().len(), 3, "they outlive it");
    let output = harness.command(&["down"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("none is left"), "{output:?}");
    assert_eq!(harness.members(), []);
}

#[test]
fn orphans_are_found_without_the_state_file() {
    let harness = Harness::start("nostate");
    harness.run("service", SLEEP, Restart::Always);
    harness.kill_supervisor();
    fs::remove_file(harness.dir.join("state.json")).unwrap();
    assert!(harness.command(&["down"]).status.success());
    assert_eq!(harness.members(), []);
}

#[test]
fn down_leaves_nothing_and_says_so() {
    let harness = Harness::start("down");
    harness.run("service", SLEEP, Restart::Always);
    harness.run_deaf("deaf", Restart::OnCommand);
    let output = harness.command(&["down"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("none is left"), "{output:?}");
    assert_eq!(harness.members(), []);
    assert!(!harness.supervisor.alive());
    let again = harness.command(&["down"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("Nothing was running"), "{again:?}");
}

#[test]
fn two_stacks_side_by_side() {
    let (one, other) = (Harness::start("one"), Harness::start("other"));
    one.run("service", SLEEP, Restart::Always);
    let kept = other.run("service", SLEEP, Restart::Always);
    assert!(one.command(&["down"]).status.success());
    assert_eq!(one.members(), []);
    assert!(kept.alive());
    assert_eq!(other.child("service").id, Some(kept));
}

#[test]
fn one_supervisor_per_stack() {
    let harness = Harness::start("single");
    let mut command = Command::new(STACK);
    command.args(["__supervise", "--base-port", "31000", "--dir"]).arg(&harness.dir);
    let second = command.output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another supervisor"), "{second:?}");
    assert!(harness.client().status().is_ok());
}

#[test]
fn a_child_sees_only_its_own_environment() {
    let harness = Harness::start("env");
    let spec = harness.spec("env", "exec env", Restart::OnCommand);
    harness.client().send(&Request::Run { spec }).unwrap();
    until("it has ended", || harness.child("env").state == "ended with code 0");
    let log = fs::read_to_string(harness.dir.join("env.log")).unwrap();
    let mut names: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    // The shell adds PWD by itself.
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    names.sort_unstable();
    assert_eq!(names, ["CORO_STACK_CHILD", "CORO_STACK_MEMBER", "HOME", "LANG", "PATH"]);
}
