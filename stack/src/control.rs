//! The language between the command and the supervisor: one JSON object per line over a Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::process::ProcessId;
use crate::spec::{SERVICE_TIER, Spec};

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Run this. One that runs already is left alone, unless it is a service whose command or file has changed.
    Run {
        spec: Spec,
    },
    /// Run again what was stopped or ended.
    Start {
        name: String,
    },
    Stop {
        name: String,
    },
    /// Stop and start it, as it is specified.
    Restart {
        name: String,
    },
    /// Stop it, and know nothing of it any more: it was there for a while only.
    Remove {
        name: String,
    },
    /// SIGKILL to the child and everything under it.
    Kill {
        name: String,
    },
    Status,
    /// Stop everything and end.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Reply {
    Done { changed: bool },
    Status { children: Vec<ChildStatus> },
    Failed { reason: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChildStatus {
    pub name: String,
    /// `running`, `stopping`, `stopped`, `restarting`, or how it ended.
    pub state: String,
    pub id: Option<ProcessId>,
    pub restarts: u32,
    pub port: Option<u16>,
    pub tier: u8,
}

impl ChildStatus {
    /// One of our own processes, not a server: it comes back by itself.
    pub fn is_service(&self) -> bool {
        self.tier == SERVICE_TIER
    }
}

/// A connection to a supervisor.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects; `None` when no supervisor listens.
    pub fn connect(socket: &Path) -> Option<Self> {
        UnixStream::connect(socket).ok().map(|stream| Self { stream: BufReader::new(stream) })
    }

    /// Connects to the supervisor of a stack that is up.
    ///
    /// # Errors
    /// When no supervisor listens.
    pub fn of_running(layout: &Layout) -> Result<Self> {
        Self::connect(&layout.socket())
            .with_context(|| format!("the stack in {} is not up: cargo stack up", layout.dir.display()))
    }

    /// # Errors
    /// When the supervisor is gone or refuses.
    pub fn send(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        stream.write_all(line.as_bytes()).context("the supervisor is gone")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("the supervisor does not answer")?;
        match serde_json::from_str(&answer).context("the supervisor ended")? {
            Reply::Failed { reason } => bail!(reason),
            reply => Ok(reply),
        }
    }

    /// # Errors
    /// As [`Client::send`].
    pub fn status(&mut self) -> Result<Vec<ChildStatus>> {
        match self.send(&Request::Status)? {
            Reply::Status { children } => Ok(children),
            other => bail!(
                "the supervisor answered {other:?}, which this version does not know: `cargo stack down`, then `up` again"
            ),
        }
    }
}
