//! What the gateway decided, once per idempotency key.
//!
//! Each decision is one line of an append-only file, written (not synced) before anybody is told: a killed
//! process loses nothing, and a line torn by the kill, which nobody was told of, is dropped at the next start.
//! The memory is an index over the same lines: about 200 bytes per charge.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::Serialize;

use crate::record::{Decided, Id, Line, Request, Verdict, micros, now, print};

/// How a call under a key begins.
pub enum Begin {
    /// The first: decide, then [`Ledger::record`].
    Fresh(Ticket),
    /// Decided before: the same answer again.
    Known(Decided),
    /// The first call under this key has not been decided yet.
    InProgress,
    /// The key belongs to another request.
    Reused,
}

/// The right to decide under a key; giving it up undecided (drop) leaves the key free.
pub struct Ticket {
    ledger: Arc<Ledger>,
    key: Id,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ledger.state().open.remove(&self.key);
    }
}

/// How many decisions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub charges: u64,
    pub declines: u64,
    /// Charges beyond the first of their reference: what must never happen to a customer.
    pub surplus: u64,
}

pub struct Ledger {
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Bytes of whole lines; whatever lies beyond is the rest of a failed write.
    length: u64,
    line: Vec<u8>,
    decided: Vec<Decided>,
    by_key: HashMap<Id, u32>,
    /// The charge of a reference if there is one, its last decline otherwise.
    by_reference: HashMap<Id, u32>,
    open: HashSet<Id>,
    /// Calls so far, of references whose script counts them.
    calls: HashMap<Id, u32>,
    counts: Counts,
}

impl Ledger {
    /// Opens or creates the file and reads it. Fails if another process has it open, or if a line other
    /// than a torn last one cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<Arc<Ledger>> {
        let open = || OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = open().with_context(|| format!("open the ledger {}", path.display()))?;
        if let Err(error) = file.try_lock() {
            bail!("the ledger {} is in use by another process: {error}", path.display());
        }
        let mut state = State {
            file,
            length: 0,
            line: Vec::new(),
            decided: Vec::new(),
            by_key: HashMap::new(),
            by_reference: HashMap::new(),
            open: HashSet::new(),
            calls: HashMap::new(),
            counts: Counts::default(),
        };
        state.recover().with_context(|| format!("read the ledger {}", path.display()))?;
        Ok(Arc::new(Ledger { state: Mutex::new(state) }))
    }

    /// Claims `key` for `request`, or says what became of it.
    pub fn begin(self: &Arc<Self>, key: &str, request: &Request) -> Begin {
        let mut state = self.state();
        let key = Id::new(key);
        if let Some(known) = state.by_key.get(&key) {
            let known = &state.decided[*known as usize];
            return if known.print == print(request) { Begin::Known(known.clone()) } else { Begin::Reused };
        }
        if !state.open.insert(key.clone()) {
            return Begin::InProgress;
        }
        Begin::Fresh(Ticket { ledger: self.clone(), key })
    }

    /// Writes the decision, then remembers it. On an error nothing was decided.
    pub fn record(
        &self,
        ticket: &Ticket,
        request: &Request,
        verdict: Verdict,
        lag: Duration,
    ) -> anyhow::Result<Decided> {
        let at = now();
        let decided = Decided {
            key: ticket.key.clone(),
            reference: Id::new(&request.reference),
            amount: request.amount,
            verdict,
            at,
            visible_at: at.checked_add(lag).unwrap_or(Timestamp::MAX),
            print: print(request),
        };
        let mut state = self.state();
        state.append(&decided).context("write to the ledger")?;
        state.remember(decided.clone());
        Ok(decided)
    }

    /// What an inquiry by reference sees: the charge if there is one, a decline otherwise.
    pub fn find(&self, reference: &str) -> Option<Decided> {
        let state = self.state();
        let found = state.by_reference.get(&Id::new(reference))?;
        let found = &state.decided[*found as usize];
        (found.visible_at <= now()).then(|| found.clone())
    }

    /// Counts a call of this reference and returns its number: 1, 2, …
    pub fn count_call(&self, reference: &str) -> u32 {
        let mut state = self.state();
        let calls = state.calls.entry(Id::new(reference)).or_insert(0);
        *calls = calls.saturating_add(1);
        *calls
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Calls that are begun and not decided yet: charges that may still come.
    pub fn undecided(&self) -> usize {
        self.state().open.len()
    }

    /// A page of the export, charges in the order in which they were made, as NDJSON, and where the next
    /// one starts; `None` at the end.
    pub fn export(&self, from: usize, lines_max: usize) -> Option<(String, usize)> {
        let state = self.state();
        let page = state.decided.get(from..).filter(|page| !page.is_empty())?;
        let page = &page[..page.len().min(lines_max)];
        let mut text = String::with_capacity(page.len() * 128);
        for decided in page.iter().filter(|decided| decided.verdict == Verdict::Approved) {
            // Written by hand: every field is a number, a UUID or escaped by serde_json.
            let reference = serde_json::Value::from(decided.reference.to_string());
            let (amount, at) = (decided.amount, micros(decided.at));
            text.push_str(&format!(
                "{{\"reference\":{reference},\"amount\":{amount},\"kind\":\"charge\",\"at\":\"{at}\"}}\n"
            ));
        }
        Some((text, from + page.len()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not make the ledger wrong: the index is changed only after the file.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn recover(&mut self) -> anyhow::Result<()> {
        let mut reader = BufReader::new(self.file.try_clone()?);
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                if read > 0 {
                    tracing::warn!(line = number, bytes = read, "dropped the torn last line");
                    self.file.set_len(self.length)?;
                }
                return Ok(());
            }
            let parsed: Line<'_> = serde_json::from_slice(&line).with_context(|| format!("line {number}"))?;
            self.remember(parsed.into_decided().with_context(|| format!("line {number}"))?);
            self.length += read as u64;
        }
        Ok(())
    }

    fn append(&mut self, decided: &Decided) -> anyhow::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &Line::from_decided(decided))?;
        self.line.push(b'\n');
        if let Err(error) = self.file.write_all(&self.line) {
            // Half a line would swallow the next one.
            self.file.set_len(self.length).context("cut a half-written line off")?;
            return Err(error.into());
        }
        self.length += self.line.len() as u64;
        Ok(())
    }

    fn remember(&mut self, decided: Decided) {
        let index = self.decided.len() as u32;
        let approved = decided.verdict == Verdict::Approved;
        let before = self.by_reference.get(&decided.reference).map(|i| &self.decided[*i as usize].verdict);
        let charged = before == Some(&Verdict::Approved);
        if approved {
            self.counts.charges += 1;
            self.counts.surplus += u64::from(charged);
        } else {
            self.counts.declines += 1;
        }
        if !charged {
            self.by_reference.insert(decided.reference.clone(), index);
        }
        self.by_key.insert(decided.key.clone(), index);
        self.decided.push(decided);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn request(reference: &str, amount: i64) -> Request {
        let (client_number, service_id) = ("5551234".to_owned(), "power".to_owned());
        Request { reference: reference.to_owned(), amount, client_number, service_id }
    }

    fn charge(ledger: &Arc<Ledger>, key: &str, request: &Request) -> Decided {
        let Begin::Fresh(ticket) = ledger.begin(key, request) else { panic!("{key} is not fresh") };
        ledger.record(&ticket, request, Verdict::Approved, Duration::ZERO).expect("recorded")
    }

    fn path() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("gateway-sim-{}.ndjson", Uuid::new_v4()))
    }

    #[test]
    fn a_key_is_decided_once_and_belongs_to_one_request() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        let first = request("r1", 5);
        let Begin::Fresh(ticket) = ledger.begin("k1", &first) else { panic!("not fresh") };
        assert!(matches!(ledger.begin("k1", &first), Begin::InProgress));
        let decided = ledger.record(&ticket, &first, Verdict::Approved, Duration::ZERO).unwrap();
        drop(ticket);
        assert!(matches!(ledger.begin("k1", &first), Begin::Known(known) if known == decided));
        assert!(matches!(ledger.begin("k1", &request("r1", 6)), Begin::Reused));
        assert_eq!(ledger.counts(), Counts { charges: 1, declines: 0, surplus: 0 });
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_ticket_given_up_leaves_the_key_free() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        drop(ledger.begin("k1", &request("r1", 5)));
        charge(&ledger, "k1", &request("r1", 5));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn another_key_charges_the_same_reference_again_and_that_is_counted() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        charge(&ledger, "k1", &request("r1", 5));
        charge(&ledger, "k2", &request("r1", 5));
        assert_eq!(ledger.counts(), Counts { charges: 2, declines: 0, surplus: 1 });
        assert_eq!(ledger.find("r1").unwrap().key, Id::new("k1"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn everything_is_there_after_a_restart_and_a_torn_line_is_not() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        let uuid = "0198c0de-0000-7000-8000-000000000001";
        let approved = charge(&ledger, uuid, &request(uuid, 15_000));
        let odd = request("odd \"reference\"\n", 1);
        let Begin::Fresh(ticket) = ledger.begin("k2", &odd) else { panic!("not fresh") };
        let verdict = Verdict::Declined { code: "no_funds".into(), status: 402 };
        let declined = ledger.record(&ticket, &odd, verdict, Duration::from_secs(3600)).unwrap();
        let (counts, exported) = (ledger.counts(), ledger.export(0, 100));
        drop((ticket, ledger));

        let whole = std::fs::read(&path).unwrap();
        for torn in [&b"{"[..], b"{\"reference\":\"r3\",\"amount\":1}", b"\xff"] {
            std::fs::write(&path, [&whole, torn].concat()).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
            assert_eq!((ledger.counts(), ledger.export(0, 100)), (counts, exported.clone()));
            assert!(matches!(ledger.begin(uuid, &request(uuid, 15_000)), Begin::Known(d) if d == approved));
            assert!(matches!(ledger.begin("k2", &odd), Begin::Known(d) if d == declined));
            assert_eq!(ledger.find("odd \"reference\"\n"), None, "not visible yet");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_damaged_line_and_a_second_process_are_refused() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        assert!(Ledger::open(&path).is_err(), "in use");
        drop(ledger);
        std::fs::write(&path, "{}\n").unwrap();
        let error = format!("{:#}", Ledger::open(&path).err().expect("damaged"));
        assert!(error.contains("line 1"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_export_comes_in_pages_without_declines() {
        let path = path();
        let ledger = Ledger::open(&path).unwrap();
        for n in 0..5 {
            let request = request(&format!("r{n}"), n + 1);
            let Begin::Fresh(ticket) = ledger.begin(&request.reference, &request) else { panic!() };
            let declined = Verdict::Declined { code: "no".into(), status: 402 };
            let verdict = if n == 1 { declined } else { Verdict::Approved };
            ledger.record(&ticket, &request, verdict, Duration::ZERO).unwrap();
        }
        let (mut text, mut from) = (String::new(), 0);
        while let Some((page, next)) = ledger.export(from, 2) {
            text.push_str(&page);
            from = next;
        }
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seen: Vec<_> =
            lines.iter().map(|l| (l["reference"].as_str().unwrap(), l["amount"].as_i64())).collect();
        assert_eq!(seen, [("r0", Some(1)), ("r2", Some(3)), ("r3", Some(4)), ("r4", Some(5))]);
        assert!(lines.iter().all(|l| l["kind"] == "charge" && l["at"].as_str().unwrap().len() == 27));
        std::fs::remove_file(path).unwrap();
    }
}
