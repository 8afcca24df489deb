//! Asks and changes an HAProxy that runs, by its runtime API: one command per connection to its socket.
//!
//! * A slot that drains gets no further request, and what it has begun goes on. In maintenance it gets nothing.
//! * The backends that follow another one are in the state of its slots.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::slots::Backend;
use crate::layout::Layout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What somebody wants of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is asked whether it is ready, and gets requests when it is.
    Ready,
    Drain,
    Maintenance,
}

impl Wanted {
    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maint",
        }
    }
}

/// A slot as HAProxy shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub backend: String,
    pub server: String,
    /// Such as `UP`, `DRAIN`, `MAINT` or `UP 1/3`.
    pub status: String,
    /// Requests that it serves.
    pub sessions: u64,
}

impl Slot {
    /// Whether it may get requests.
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP")
    }
}

/// The HAProxy of a stack.
pub struct Runtime {
    socket: PathBuf,
}

impl Runtime {
    /// # Errors
    /// When it does not answer.
    pub fn of(layout: &Layout) -> Result<Self> {
        let runtime = Self { socket: layout.edge_socket() };
        runtime.slots().context(
            "the edge cannot be asked: `cargo stack start haproxy`; one that a version without slots started needs \
             `cargo stack down`, then `up`. Nothing was changed",
        )?;
        Ok(runtime)
    }

    /// Puts the slot of this name into a state.
    ///
    /// # Errors
    /// When HAProxy refuses.
    pub fn set(&self, backend: &Backend, server: &str, wanted: Wanted) -> Result<()> {
        let command = format!("set server {}/{server} state {}", backend.name, wanted.word());
        let refusal = self.ask(&command)?;
        ensure!(refusal.trim().is_empty(), "the edge refused `{command}`: {}", refusal.trim());
        Ok(())
    }

    /// Every slot of every backend.
    ///
    /// # Errors
    /// When HAProxy does not answer, or in another form.
    pub fn slots(&self) -> Result<Vec<Slot>> {
        // Of all proxies the servers, all of them.
        parse(&self.ask("show stat -1 4 -1")?)
    }

    fn ask(&self, command: &str) -> Result<String> {
        let describe = || format!("the edge at {}", self.socket.display());
        let mut stream = UnixStream::connect(&self.socket).with_context(describe)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(format!("{command}\n").as_bytes()).with_context(describe)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(describe)?;
        Ok(answer)
    }
}

/// Reads HAProxy's table of statistics, whose first line names the columns.
fn parse(table: &str) -> Result<Vec<Slot>> {
    let mut lines = table.lines().filter(|line| !line.is_empty());
    let head = lines.next().and_then(|line| line.strip_prefix("# ")).context("the edge sent no table")?;
    let columns: Vec<&str> = head.split(',').collect();
    let column = |name: &str| {
        columns.iter().position(|column| *column == name).with_context(|| format!("no column {name}"))
    };
    let (backend, server, status, sessions) =
        (column("pxname")?, column("svname")?, column("status")?, column("scur")?);
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let field = |at: usize| fields.get(at).copied().with_context(|| format!("a short line: {line}"));
            Ok(Slot {
                backend: field(backend)?.to_owned(),
                server: field(server)?.to_owned(),
                status: field(status)?.to_owned(),
                sessions: field(sessions)?.parse().with_context(|| format!("no number: {line}"))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_by_the_names_of_its_columns() {
        let table = "# pxname,svname,qcur,scur,x,status,\n\
            payments-svc,payments-svc,0,3,,UP,\n\
            payments-svc,payments-svc-3,0,0,,MAINT,\n\
            balance-svc,balance-svc,0,1,,UP 1/3,\n\n";
        let slots = parse(table).unwrap();
        let read: Vec<(&str, u64, bool)> =
            slots.iter().map(|slot| (slot.server.as_str(), slot.sessions, slot.is_up())).collect();
        assert_eq!(read, [("payments-svc", 3, true), ("payments-svc-3", 0, false), ("balance-svc", 1, true)]);
        for bad in ["", "Unknown command.\n", "# pxname,svname\na,b\n", "# pxname,svname,scur,status\na,b\n"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
