//! Carries faults out on a running stack, through its supervisor, and repairs the leftovers of an interrupted run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use stack::control::{ChildStatus, Client, Request};
use stack::layout::Layout;
use stack::process::ProcessId;
use tokio::sync::watch;

use super::faults::{Fault, FaultKind};
use super::view::View;

/// Between two polls of a process.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a process may take to run again, recovery of a server included.
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub struct Operator {
    socket: Arc<PathBuf>,
    view: View,
}

impl Operator {
    /// # Errors
    /// When the stack is not up, wholly.
    pub async fn new(view: &View) -> Result<Self> {
        let socket = Arc::new(Layout::from_env()?.socket());
        let this = Self { socket, view: view.clone() };
        let children = this.children().await.context("the stack is not up; start it: cargo stack up")?;
        let down: Vec<&str> =
            children.iter().filter(|child| child.id.is_none()).map(|child| child.name.as_str()).collect();
        ensure!(down.is_empty(), "not running: {}; cargo stack up starts them", down.join(", "));
        Ok(this)
    }

    /// Names of all our processes, sorted: the services, not the servers.
    pub async fn processes(&self) -> Result<Vec<String>> {
        let children = self.children().await?;
        let services = children.into_iter().filter(ChildStatus::is_service);
        let mut names: Vec<String> = services.map(|child| child.name).collect();
        names.sort_unstable();
        ensure!(!names.is_empty(), "no service runs: cargo stack up");
        Ok(names)
    }

    /// # Errors
    /// When a fault is about something that is not in this stack.
    pub async fn knows(&self, faults: impl Iterator<Item = &Fault>) -> Result<()> {
        let children = self.children().await?;
        for Fault { target, .. } in faults {
            ensure!(children.iter().any(|child| child.name == *target), "there is no {target} in this stack");
        }
        Ok(())
    }

    /// Carries all of them out, each when its moment has come.
    pub async fn all_at_their_moments(
        &self,
        faults: &[Fault],
        accepted: &watch::Receiver<usize>,
    ) -> Result<()> {
        let each = faults.iter().map(|fault| self.at_its_moment(fault, accepted.clone()));
        futures_util::future::try_join_all(each).await.map(drop)
    }

    /// Carries them out one after the other.
    pub async fn one_by_one(&self, faults: &[Fault], accepted: &watch::Receiver<usize>) -> Result<()> {
        for fault in faults {
            self.at_its_moment(fault, accepted.clone()).await?;
        }
        Ok(())
    }

    async fn at_its_moment(&self, fault: &Fault, mut accepted: watch::Receiver<usize>) -> Result<()> {
        accepted.wait_for(|count| *count >= fault.after).await.context("the load ended before this fault")?;
        tokio::time::sleep(fault.delay).await;
        let target = fault.target.as_str();
        self.carry_out(target, fault.kind).await.with_context(|| format!("{:?} of {target}", fault.kind))
    }

    async fn carry_out(&self, target: &str, kind: FaultKind) -> Result<()> {
        match kind {
            FaultKind::Kill => {
                let id = self.kill(target).await?;
                let began = Instant::now();
                self.view.line(&format!("{target} killed (SIGKILL, pid {})", id.pid));
                let next = self.running(target, Some(id)).await?;
                let seconds = began.elapsed().as_secs_f64();
                self.view.line(&format!("{target} runs again after {seconds:.1} s, pid {}", next.pid));
            }
            FaultKind::Crash(time) => {
                let id = self.kill(target).await?;
                self.view.line(&format!(
                    "{target} killed (SIGKILL, pid {}), for {} s",
                    id.pid,
                    time.as_secs()
                ));
                self.start_after(target, time).await?;
            }
            FaultKind::Stop(time) => {
                let began = Instant::now();
                self.view.line(&format!("{target} is asked to stop, for {} s", time.as_secs()));
                self.ask(Request::Stop { name: target.to_owned() }).await?;
                self.view.line(&format!("{target} stopped within {:.1} s", began.elapsed().as_secs_f64()));
                self.start_after(target, time).await?;
            }
            FaultKind::Pause(time) => {
                let id = self.running(target, None).await?;
                ensure!(id.signal(Signal::STOP), "it cannot be paused");
                self.view.line(&format!(
                    "{target} paused (SIGSTOP, pid {}), for {} s",
                    id.pid,
                    time.as_secs()
                ));
                tokio::time::sleep(time).await;
                // Killed meanwhile, it needs no waking.
                let woken = id.signal(Signal::CONT);
                self.view
                    .line(&format!("{target} {}", if woken { "continues" } else { "was killed meanwhile" }));
            }
        }
        Ok(())
    }

    /// Kills it as soon as it runs: it may be about to come back from the last time.
    async fn kill(&self, target: &str) -> Result<ProcessId> {
        loop {
            let id = self.running(target, None).await?;
            // It may have ended by itself before the request.
            if self.ask(Request::Kill { name: target.to_owned() }).await.is_ok() {
                return Ok(id);
            }
        }
    }

    async fn start_after(&self, target: &str, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.ask(Request::Start { name: target.to_owned() }).await?;
        self.view.line(&format!("{target} started again"));
        Ok(())
    }

    /// The process under this name, once it is another one than `old`.
    async fn running(&self, target: &str, old: Option<ProcessId>) -> Result<ProcessId> {
        let began = Instant::now();
        loop {
            let children = self.children().await?;
            let child = children.into_iter().find(|child| child.name == target);
            let child = child.with_context(|| format!("there is no {target} in this stack"))?;
            match child.id {
                Some(id) if Some(id) != old => return Ok(id),
                Some(_) | None => {}
            }
            ensure!(
                began.elapsed() < RESTART_TIMEOUT,
                "{target} does not run again within {RESTART_TIMEOUT:?}: {}",
                child.state
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Wakes and starts whatever a fault that was not carried out to its end left behind.
    pub async fn heal(&self) -> Result<()> {
        for child in self.children().await? {
            match child.id {
                Some(id) => drop(id.signal(Signal::CONT)),
                None => self.ask(Request::Start { name: child.name }).await?,
            }
        }
        Ok(())
    }

    async fn children(&self) -> Result<Vec<ChildStatus>> {
        self.converse(Client::status).await
    }

    async fn ask(&self, request: Request) -> Result<()> {
        self.converse(move |client| client.send(&request).map(drop)).await
    }

    /// The supervisor's protocol blocks, and answers some requests only when they are done.
    async fn converse<T: Send + 'static>(
        &self,
        talk: impl FnOnce(&mut Client) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let socket = self.socket.clone();
        let conversation = move || {
            let mut client = Client::connect(&socket)
                .context("the stack's supervisor does not answer; start it: cargo stack up")?;
            talk(&mut client)
        };
        tokio::task::spawn_blocking(conversation).await.context("the request to the supervisor panicked")?
    }
}
