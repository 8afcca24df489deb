//! The one long-lived process of a stack: starts children, watches them, brings services back.
//!
//! All state belongs to one thread that takes events from a channel: requests from connections, ends of
//! processes from the reaper, and the passing of time. It knows nothing of what the children are.

mod child;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{WaitOptions, WaitStatus};

use crate::control::{Client, Reply, Request};
use crate::layout::Layout;
use crate::process::{self, ProcessId};
use crate::spec::{CHILD, Restart};
use crate::state::State;
use crate::{launch, logs};
use child::{Child, Phase};

const LOG_CHECK: Duration = Duration::from_secs(5);

enum Event {
    Asked(Request, Sender<Reply>),
    Ended(i32, WaitStatus),
}

struct Supervisor {
    dir: PathBuf,
    member: String,
    me: ProcessId,
    children: BTreeMap<String, Child>,
    /// Wakes the reaper, which has nothing to wait for while there are no children.
    spawned: Sender<()>,
    leaving: Option<Sender<Reply>>,
}

/// Connects to the stack's supervisor, starting one if there is none. A new one goes down with its `owner`.
///
/// # Errors
/// When it does not come up within ten seconds; its log says why.
pub fn ensure(layout: &Layout, owner: Option<ProcessId>) -> Result<Client> {
    if let Some(client) = Client::connect(&layout.socket()) {
        return Ok(client);
    }
    std::fs::create_dir_all(layout.dir.join("logs"))?;
    let log = layout.log("supervisor");
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&log)?;
    let mut command = Command::new(launch::SELF);
    command.args(["__supervise", "--base-port", &layout.base_port.to_string(), "--dir"]).arg(&layout.dir);
    if let Some(owner) = owner {
        command.args(["--owner", &owner.pid.to_string()]);
    }
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(&layout.root);
    // HOME decides where an unprivileged stack keeps its cache.
    command.envs(std::env::var_os("HOME").map(|home| ("HOME", home)));
    let mut process = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
    // So that it is no zombie when this command outlives it.
    std::thread::spawn(move || process.wait());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let Some(client) = Client::connect(&layout.socket()) {
            return Ok(client);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("the supervisor did not start:\n{}", logs::tail(&log, 10))
}

/// Runs until it is told to shut down. One per stack: a lock on the stack's folder is held meanwhile.
///
/// # Errors
/// When another supervisor holds the lock or the socket cannot be made.
pub fn run(layout: &Layout, owner: Option<ProcessId>) -> Result<()> {
    let _session = rustix::process::setsid().context("cannot make a session")?;
    let mut lock = fd_lock::RwLock::new(std::fs::File::create(layout.dir.join("supervisor.lock"))?);
    let _held = lock.try_write().context("another supervisor runs this stack")?;
    // Grandchildren whose parents die come to us instead of leaving the stack.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let _stale = std::fs::remove_file(layout.socket());
    let listener = UnixListener::bind(layout.socket()).context("cannot make the control socket")?;
    std::fs::set_permissions(layout.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (events, inbox) = mpsc::channel();
    let (spawned, wake) = mpsc::channel();
    let reaper_events = events.clone();
    std::thread::spawn(move || reap(&reaper_events, &wake));
    if let Some(owner) = owner {
        let events = events.clone();
        std::thread::spawn(move || outlive(owner, &events));
    }
    std::thread::spawn(move || accept(&listener, &events));
    let me = ProcessId::me().context("no /proc")?;
    let supervisor = Supervisor {
        dir: layout.dir.clone(),
        member: layout.member(),
        me,
        children: BTreeMap::new(),
        spawned,
        leaving: None,
    };
    let result = supervisor.serve(&inbox);
    let _gone = std::fs::remove_file(layout.socket());
    result
}

/// Asks for the shutdown that an interrupted owner cannot ask for any more.
fn outlive(owner: ProcessId, events: &Sender<Event>) {
    while owner.alive() {
        std::thread::sleep(Duration::from_millis(250));
    }
    let (sender, answer) = mpsc::channel();
    if events.send(Event::Asked(Request::Shutdown, sender)).is_ok() {
        let _down = answer.recv();
    }
}

fn accept(listener: &UnixListener, events: &Sender<Event>) {
    for stream in listener.incoming().flatten() {
        let events = events.clone();
        std::thread::spawn(move || converse(stream, &events));
    }
}

/// One request per line, one answer per line, until the other side hangs up.
fn converse(stream: UnixStream, events: &Sender<Event>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    for line in BufReader::new(stream).lines() {
        let reply = match serde_json::from_str(&line.ok()?) {
            Ok(request) => {
                let (sender, answer) = mpsc::channel();
                events.send(Event::Asked(request, sender)).ok()?;
                answer.recv().ok()?
            }
            Err(error) => Reply::Failed { reason: format!("not understood: {error}") },
        };
        let mut text = serde_json::to_string(&reply).ok()?;
        text.push('\n');
        writer.write_all(text.as_bytes()).ok()?;
    }
    Some(())
}

/// Waits for any child, adopted ones included.
fn reap(events: &Sender<Event>, wake: &Receiver<()>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                if events.send(Event::Ended(pid.as_raw_nonzero().get(), status)).is_err() {
                    return;
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                if wake.recv().is_err() {
                    return;
                }
            }
        }
    }
}

impl Supervisor {
    fn serve(mut self, inbox: &Receiver<Event>) -> Result<()> {
        self.save()?;
        let mut next_log_check = Instant::now() + LOG_CHECK;
        loop {
            let due = self.children.values().filter_map(Child::due).chain([next_log_check]).min();
            let wait = due.map_or(LOG_CHECK, |due| due.saturating_duration_since(Instant::now()));
            match inbox.recv_timeout(wait) {
                Ok(Event::Asked(request, reply)) => self.answer(request, reply),
                Ok(Event::Ended(pid, status)) => self.ended(pid, status),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "the channel of requests closed, so nobody can ask this supervisor for anything: it ends"
                ),
            }
            let now = Instant::now();
            if now >= next_log_check {
                next_log_check = now + LOG_CHECK;
                self.cap_logs();
            }
            self.advance(now);
            if self.leave() {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, request: Request, reply: Sender<Reply>) {
        if self.leaving.is_some() && !matches!(request, Request::Status) {
            return respond(&reply, Reply::Failed { reason: "the stack is going down".into() });
        }
        match request {
            Request::Status => {
                let children = self.children.values().map(Child::status).collect();
                respond(&reply, Reply::Status { children });
            }
            Request::Shutdown => {
                for child in self.children.values_mut() {
                    child.wanted = false;
                }
                self.leaving = Some(reply);
            }
            Request::Run { spec } => {
                let name = spec.name.clone();
                let child = self.children.entry(name.clone()).or_insert_with(|| Child::new(spec.clone()));
                let replaced = child.spec != spec || child.outdated();
                child.spec = spec;
                child.is_leaving = false;
                if replaced && child.running().is_some() && child.spec.restart == Restart::Always {
                    child.restart(reply);
                } else {
                    self.start(&name, &reply);
                }
            }
            Request::Start { name } => self.start(&name, &reply),
            Request::Stop { name } => self.with(&name, reply, Child::stop),
            Request::Remove { name } => self.remove(&name, reply),
            Request::Kill { name } => self.kill(&name, reply),
            Request::Restart { name } => self.restart(&name, reply),
        }
    }

    fn with(&mut self, name: &str, reply: Sender<Reply>, act: impl FnOnce(&mut Child, Sender<Reply>)) {
        match self.children.get_mut(name) {
            Some(child) => act(child, reply),
            None => respond(&reply, Reply::Failed { reason: format!("there is no {name} in this stack") }),
        }
    }

    fn start(&mut self, name: &str, reply: &Sender<Reply>) {
        let Some(child) = self.children.get_mut(name) else {
            return respond(reply, Reply::Failed { reason: format!("there is no {name} in this stack") });
        };
        if child.running().is_some() {
            // Being stopped just now: come back when that is done.
            if child.stopping() {
                return child.restart(reply.clone());
            }
            return respond(reply, Reply::Done { changed: false });
        }
        child.wanted = true;
        child.backoff.reset();
        let outcome = match self.spawn(name) {
            Ok(()) => Reply::Done { changed: true },
            Err(error) => Reply::Failed { reason: format!("{name}: {error:#}") },
        };
        respond(reply, outcome);
    }

    fn restart(&mut self, name: &str, reply: Sender<Reply>) {
        let Some(child) = self.children.get_mut(name) else { return self.start(name, &reply) };
        match child.running() {
            Some(_) => child.restart(reply),
            None => self.start(name, &reply),
        }
    }

    fn remove(&mut self, name: &str, reply: Sender<Reply>) {
        let Some(child) = self.children.get_mut(name) else {
            return respond(&reply, Reply::Done { changed: false });
        };
        child.is_leaving = true;
        child.stop(reply);
        if child.running().is_none() {
            self.children.remove(name);
        }
    }

    fn kill(&mut self, name: &str, reply: Sender<Reply>) {
        let Some(id) = self.children.get(name).and_then(Child::running) else {
            return respond(&reply, Reply::Failed { reason: format!("{name} is not running") });
        };
        if let Some(child) = self.children.get_mut(name) {
            child.waiting.push(reply);
        }
        for member in process::family(&process::all(), &[id]) {
            member.signal(rustix::process::Signal::KILL);
        }
    }

    fn spawn(&mut self, name: &str) -> Result<()> {
        let Some(child) = self.children.get_mut(name) else {
            bail!("this stack has no {name}: `cargo stack status` lists its processes")
        };
        let mut process = launch::command(&child.spec, &self.member);
        let pid = i32::try_from(process.spawn()?.id())?;
        // It is ours to reap, so it is still there even if it has ended already.
        let id = ProcessId::of(pid).context("ended at once")?;
        child.started(id);
        let _reaper_gone = self.spawned.send(());
        self.save()
    }

    fn ended(&mut self, pid: i32, status: WaitStatus) {
        let found = self.children.values_mut().find(|child| child.running().is_some_and(|id| id.pid == pid));
        let Some(child) = found else { return };
        let name = child.spec.name.clone();
        let old = child.running();
        let again = child.ended(&describe(status));
        self.remove_strays(old);
        if again {
            self.bring_back(&name);
        }
        if let Some(child) = self.children.get_mut(&name) {
            child.answer(|| Reply::Done { changed: true });
            if child.is_leaving && child.running().is_none() {
                self.children.remove(&name);
            }
        }
        self.note(self.save());
    }

    fn bring_back(&mut self, name: &str) {
        if let Err(error) = self.spawn(name) {
            eprintln!("{name}: {error:#}");
            if let Some(child) = self.children.get_mut(name) {
                child.ended("cannot be started");
            }
        }
    }

    /// Ends processes that outlive their leader: they would hold ports and files of the next one. What was left to us by a child
    /// that still runs is not one of them.
    fn remove_strays(&self, leader: Option<ProcessId>) {
        let is_kept = |pid: i32| {
            let child_name = process::variable(pid, CHILD);
            let mut running = self.children.values().filter_map(|child| Some((child, child.running()?)));
            running.any(|(child, id)| id.pid == pid || child_name.as_ref() == Some(&child.spec.name))
        };
        let find = || {
            let processes = process::all();
            let adopted = processes.iter().filter(|stat| stat.parent == self.me.pid && !stat.zombie);
            let mut strays: Vec<ProcessId> =
                adopted.map(|stat| stat.id).filter(|id| !is_kept(id.pid)).collect();
            strays.extend(process::family(&processes, leader.as_slice()));
            strays
        };
        let left = process::kill_until_gone(Duration::from_secs(5), find);
        if !left.is_empty() {
            eprintln!("cannot end {left:?}");
        }
    }

    /// Carries out the actions that are due: restarts after a wait, SIGKILL after an unanswered stop.
    fn advance(&mut self, now: Instant) {
        let due: Vec<String> = self
            .children
            .iter()
            .filter(|(_, child)| child.due().is_some_and(|due| due <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(child) = self.children.get_mut(&name) else { continue };
            match child.phase {
                Phase::Waiting { .. } => {
                    child.restarts += 1;
                    self.bring_back(&name);
                }
                Phase::Running { id, .. } => {
                    child.stop_timed_out();
                    for member in process::family(&process::all(), &[id]) {
                        member.signal(rustix::process::Signal::KILL);
                    }
                }
                Phase::Down { .. } => {}
            }
        }
    }

    /// While leaving: stops the highest tier that still runs. True when nothing is left.
    fn leave(&mut self) -> bool {
        let Some(reply) = &self.leaving else { return false };
        for child in self.children.values_mut() {
            child.cancel_wait();
        }
        let running = self.children.values_mut().filter(|child| child.running().is_some());
        let Some(tier) = running.map(|child| child.spec.tier).max() else {
            self.remove_strays(None);
            self.note(State::default().write(&self.dir));
            respond(reply, Reply::Done { changed: true });
            // The answer is written by another thread.
            std::thread::sleep(Duration::from_millis(50));
            return true;
        };
        for child in self.children.values_mut().filter(|child| child.spec.tier == tier) {
            child.ask_to_stop();
        }
        false
    }

    fn cap_logs(&self) {
        for child in self.children.values() {
            self.note(logs::cap(&child.spec.log, logs::LOG_BYTES_MAX).map(|_| ()));
        }
    }

    fn save(&self) -> Result<()> {
        let children = self.children.values().filter_map(Child::leader).collect();
        State { supervisor: Some(self.me), children }.write(&self.dir)
    }

    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            eprintln!("{}: {error:#}", self.dir.display());
        }
    }
}

/// Nobody waits for an answer that cannot be given: the connection is closed then.
fn respond(reply: &Sender<Reply>, answer: Reply) {
    let _hung_up = reply.send(answer);
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
