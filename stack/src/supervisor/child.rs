//! One child as the supervisor sees it.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::control::{ChildStatus, Reply};
use crate::process::{self, ProcessId};
use crate::spec::{Restart, Spec};
use crate::state::Leader;

pub enum Phase {
    Running {
        id: ProcessId,
        since: Instant,
        /// Set when it was asked to stop: when it will be made to.
        kill_at: Option<Instant>,
    },
    /// Ended by itself; comes back then.
    Waiting {
        until: Instant,
        how: String,
    },
    Down {
        how: String,
    },
}

pub struct Child {
    pub spec: Spec,
    pub phase: Phase,
    /// Whether it should be running: what an end means depends on it.
    pub wanted: bool,
    /// Stopped only to be started again.
    again: bool,
    /// Once it has ended, the stack no longer has it.
    pub is_leaving: bool,
    pub restarts: u32,
    pub backoff: Backoff,
    /// Told when it has ended (and, for a restart, is back).
    pub waiting: Vec<Sender<Reply>>,
}

impl Child {
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            phase: Phase::Down { how: "stopped".to_owned() },
            wanted: true,
            again: false,
            is_leaving: false,
            restarts: 0,
            backoff: Backoff::default(),
            waiting: Vec::new(),
        }
    }

    pub fn running(&self) -> Option<ProcessId> {
        match self.phase {
            Phase::Running { id, .. } => Some(id),
            Phase::Waiting { .. } | Phase::Down { .. } => None,
        }
    }

    pub fn stopping(&self) -> bool {
        matches!(self.phase, Phase::Running { kill_at: Some(_), .. })
    }

    pub fn outdated(&self) -> bool {
        self.running().is_some_and(process::outdated)
    }

    /// The time of its next action, if one is planned.
    pub fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running { kill_at, .. } => kill_at,
            Phase::Waiting { until, .. } => Some(until),
            Phase::Down { .. } => None,
        }
    }

    pub fn started(&mut self, id: ProcessId) {
        self.phase = Phase::Running { id, since: Instant::now(), kill_at: None };
    }

    /// Its process is gone. True when it must be started again at once.
    pub fn ended(&mut self, how: &str) -> bool {
        let ran = match self.phase {
            Phase::Running { since, .. } => since.elapsed(),
            Phase::Waiting { .. } | Phase::Down { .. } => Duration::ZERO,
        };
        if std::mem::take(&mut self.again) {
            self.restarts += 1;
            self.phase = Phase::Down { how: "restarting".to_owned() };
            return true;
        }
        self.phase = match (self.wanted, self.spec.restart) {
            (false, _) => Phase::Down { how: "stopped".to_owned() },
            (true, Restart::OnCommand) => Phase::Down { how: how.to_owned() },
            (true, Restart::Always) => {
                Phase::Waiting { until: Instant::now() + self.backoff.after(ran), how: how.to_owned() }
            }
        };
        false
    }

    /// Asks once; the second time changes nothing.
    pub fn ask_to_stop(&mut self) {
        let timeout = Duration::from_secs(self.spec.stop_seconds);
        if let Phase::Running { id, kill_at, .. } = &mut self.phase
            && kill_at.is_none()
        {
            id.signal(self.spec.stop_signal.signal());
            *kill_at = Some(Instant::now() + timeout);
        }
    }

    /// SIGKILL has been sent; again in a second if it must be.
    pub fn stop_timed_out(&mut self) {
        if let Phase::Running { kill_at, .. } = &mut self.phase {
            *kill_at = Some(Instant::now() + Duration::from_secs(1));
        }
    }

    pub fn stop(&mut self, reply: Sender<Reply>) {
        self.wanted = false;
        self.again = false;
        self.cancel_wait();
        self.waiting.push(reply);
        if self.running().is_some() {
            self.ask_to_stop();
        } else {
            self.phase = Phase::Down { how: "stopped".to_owned() };
            self.answer(|| Reply::Done { changed: false });
        }
    }

    /// For one that runs; the answer comes when it is back.
    pub fn restart(&mut self, reply: Sender<Reply>) {
        self.wanted = true;
        self.again = true;
        self.backoff.reset();
        self.waiting.push(reply);
        self.ask_to_stop();
    }

    pub fn cancel_wait(&mut self) {
        if !self.wanted {
            self.again = false;
            if matches!(self.phase, Phase::Waiting { .. }) {
                self.phase = Phase::Down { how: "stopped".to_owned() };
            }
        }
    }

    pub fn answer(&mut self, reply: impl Fn() -> Reply) {
        for waiting in self.waiting.drain(..) {
            let _hung_up = waiting.send(reply());
        }
    }

    pub fn leader(&self) -> Option<Leader> {
        let id = self.running()?;
        Some(Leader { name: self.spec.name.clone(), id, stop_signal: self.spec.stop_signal })
    }

    pub fn status(&self) -> ChildStatus {
        let state = match &self.phase {
            Phase::Running { kill_at: Some(_), .. } => "stopping".to_owned(),
            Phase::Running { .. } => "running".to_owned(),
            Phase::Waiting { how, .. } => format!("restarting ({how})"),
            Phase::Down { how } => how.clone(),
        };
        ChildStatus {
            name: self.spec.name.clone(),
            state,
            id: self.running(),
            restarts: self.restarts,
            port: self.spec.port,
            tier: self.spec.tier,
        }
    }
}
