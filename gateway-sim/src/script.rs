//! Scripts: the directives in a `client_number` that control what the gateway does with its charge.
//!
//! * Directives follow the first `-` and are separated by `-`: `5551234-decline-slow200`.
//! * An unknown directive has no effect, so ordinary numbers may contain dashes.
//! * A number without a known directive gets the default script (`SCRIPT`, `PUT /script`).
//! * Every random draw is a function of seed, reference and number of the call.
//!
//! | directive | effect |
//! |---|---|
//! | `approve` | approve, whatever the default script is |
//! | `decline` | 402, recorded under the key |
//! | `decline200` | the same with status 200, as some gateways do |
//! | `mixN` | decline N percent of the references |
//! | `slowN` | decide after N ms |
//! | `jitterN` | decide after 0 to N ms, evenly |
//! | `tailN` | decide after a long-tailed time: median N ms, one in a hundred takes ten times as long |
//! | `lagN` | inquiries do not find the charge for N ms |
//! | `hang` | decide nothing, never answer |
//! | `reset` | decide nothing, reset the connection |
//! | `http500` `http502` `http429` `http409` | decide nothing, answer so (502: an HTML page; 429: `Retry-After: 1`; 409: in progress) |
//! | `garbage` | decide nothing, answer 200 with a body that is not JSON |
//! | `cut` | decide nothing, promise a body and stop in the middle of it |
//! | `stray…` `nameless…` `amount…` + `ok`, `no`, `bad`, `none` | decide nothing, answer with a success, decline, rejection or not-found of another charge, without a name, or of another amount |
//! | `cached` | decide nothing, answer what was answered last to another charge |
//! | `page200` `page402` `page403` `page404` | decide nothing, answer with an HTML page of that status |
//! | `then` + one of these, e.g. `thenhang`, `thenhttp500` | decide and record, *then* misbehave so |
//! | `lateN` | never answer, and decide N ms later |
//! | `softN` | answer 402 with `"retryable": true`, be pending, and decide N ms later |
//! | `hook` | send the webhook even if the caller received the answer |
//! | `hooklateN` `hookxN` `hooklost` `hookbad` | that webhook N ms late, N times, not at all, badly signed |
//! | `ask` or `void` + one of the misbehaviours, e.g. `asknamelessno`, `voidstrayok` | inquiries about the charge, or its voids, are answered so |
//! | one of the misbehaviours + `xN`, e.g. `hangx3` | misbehave in the first N calls of a reference (otherwise once) |

use std::time::Duration;

/// The behaviour for the charges of one client number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub hook: Hook,
    pub decision: DecisionRule,
    pub latency: Latency,
    /// How long inquiries do not find the charge.
    pub lag: Duration,
    pub fault: Option<Fault>,
    /// The faults of inquiries and voids. They decide nothing, so their `when` is [`When::Never`].
    pub inquiry: Option<Fault>,
    pub void: Option<Fault>,
}

/// How the webhook of a decision is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Whether it is sent even if the caller received the answer.
    pub always: bool,
    pub late: Duration,
    pub copies: u32,
    pub bad: bool,
}

impl Default for Hook {
    fn default() -> Self {
        Self { always: false, late: Duration::ZERO, copies: 1, bad: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionRule {
    Approve,
    /// Declined with this status, 402 or 200.
    Decline(u16),
    /// This many percent of the references are declined.
    Mix(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// The configured latency of every call.
    Base,
    Fixed(Duration),
    Even(Duration),
    Tail(Duration),
}

/// A misbehaviour during the first `times` calls of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub when: When,
    pub answer: Answer,
    pub times: u32,
}

/// When the charge is decided, relative to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    Before,
    Later(Duration),
}

/// The answer of a misbehaving call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Hang,
    Reset,
    Status500,
    Html502,
    TooMany,
    InProgress,
    /// Declined for now.
    Soft,
    Garbage,
    Cut,
    Foreign(Foreign),
}

/// An answer that is not about this charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    Document(Name, Claim),
    /// The last answer about another charge.
    Cached,
    /// HTML, with this status.
    Page(u16),
}

/// The charge that a document names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    None,
    Stranger,
    /// This charge, with another amount.
    OtherAmount,
}

/// The outcome that a document states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// For a void: that it is done.
    Succeeded,
    Declined,
    Rejected,
    NotFound,
}

impl Default for Script {
    fn default() -> Self {
        let hook = Hook::default();
        let (decision, latency, lag) = (DecisionRule::Approve, Latency::Base, Duration::ZERO);
        Self { hook, decision, latency, lag, fault: None, inquiry: None, void: None }
    }
}

impl Script {
    /// The script in `client_number`, or `default` if it has none.
    pub fn of(client_number: &str, default: &Script) -> Script {
        match client_number.split_once('-') {
            Some((_, directives)) => Script::parse(directives).unwrap_or_else(|| default.clone()),
            None => default.clone(),
        }
    }

    /// Parses directives separated by `-`; `None` if none is known.
    pub fn parse(directives: &str) -> Option<Script> {
        let mut script = Script::default();
        let mut known = false;
        for directive in directives.split('-') {
            known |= script.read(directive);
        }
        known.then_some(script)
    }

    fn read(&mut self, directive: &str) -> bool {
        if let Some(fault) = Fault::parse(directive) {
            self.fault = Some(fault);
            return true;
        }
        for (prefix, planned) in [("ask", &mut self.inquiry), ("void", &mut self.void)] {
            if let Some(fault) = directive.strip_prefix(prefix).and_then(Fault::parse)
                && fault.when == When::Never
            {
                *planned = Some(fault);
                return true;
            }
        }
        if let Some(rest) = directive.strip_prefix("hook") {
            return self.hook.read(rest);
        }
        let (name, number) = split_number(directive);
        let millis = Duration::from_millis(number.unwrap_or(0));
        match (name, number) {
            ("approve", None) => self.decision = DecisionRule::Approve,
            ("decline", None) => self.decision = DecisionRule::Decline(402),
            ("decline", Some(200)) => self.decision = DecisionRule::Decline(200),
            ("mix", Some(percent @ 0..=100)) => self.decision = DecisionRule::Mix(percent as u32),
            ("slow", Some(_)) => self.latency = Latency::Fixed(millis),
            ("jitter", Some(_)) => self.latency = Latency::Even(millis),
            ("tail", Some(_)) => self.latency = Latency::Tail(millis),
            ("lag", Some(_)) => self.lag = millis,
            (_, _) => return false,
        }
        true
    }

    /// Whether this reference is declined, and with which status.
    pub fn declines(&self, seed: u64, reference: &str) -> Option<u16> {
        match self.decision {
            DecisionRule::Approve => None,
            DecisionRule::Decline(status) => Some(status),
            DecisionRule::Mix(percent) => {
                (roll(seed, reference, u32::MAX) % 100 < u64::from(percent)).then_some(402)
            }
        }
    }

    /// How long call number `call` (1, 2, …) of this reference takes to decide.
    pub fn delay(&self, base: Duration, seed: u64, reference: &str, call: u32) -> Duration {
        match self.latency {
            Latency::Base => base,
            Latency::Fixed(fixed) => fixed,
            Latency::Even(most) => most.mul_f64(unit(roll(seed, reference, call))),
            // Pareto with median m and p99 = 10 m: shape a = ln 50 / ln 10, scale m / 2^(1/a); cut at 100 m.
            Latency::Tail(median) => {
                let shape = 50f64.ln() / 10f64.ln();
                let scale = 2f64.powf(-1.0 / shape);
                let draw = scale * (1.0 - unit(roll(seed, reference, call))).powf(-1.0 / shape);
                median.mul_f64(draw.min(100.0))
            }
        }
    }

    /// The fault of call number `call` (1, 2, …), if it has one.
    pub fn fault(&self, call: u32) -> Option<Fault> {
        self.fault.filter(|fault| call <= fault.times)
    }
}

impl Hook {
    fn read(&mut self, directive: &str) -> bool {
        let (name, number) = split_number(directive);
        match (name, number) {
            ("", None) => {}
            ("late", Some(millis)) => self.late = Duration::from_millis(millis),
            ("x", Some(copies @ 1..=100)) => self.copies = copies as u32,
            ("lost", None) => self.copies = 0,
            ("bad", None) => self.bad = true,
            (_, _) => return false,
        }
        self.always = true;
        true
    }
}

impl Fault {
    fn parse(directive: &str) -> Option<Fault> {
        let (directive, times) = match directive.rsplit_once('x') {
            Some((head, number)) => match number.parse() {
                Ok(times) => (head, times),
                Err(_) => (directive, 1),
            },
            None => (directive, 1),
        };
        let later =
            |millis, answer| Some(Fault { when: When::Later(Duration::from_millis(millis)), answer, times });
        match split_number(directive) {
            ("late", Some(millis)) => return later(millis, Answer::Hang),
            ("soft", Some(millis)) => return later(millis, Answer::Soft),
            (_, _) => {}
        }
        let (when, name) = match directive.strip_prefix("then") {
            Some(name) => (When::Before, name),
            None => (When::Never, directive),
        };
        let answer = match name {
            "hang" => Answer::Hang,
            "reset" => Answer::Reset,
            "http500" => Answer::Status500,
            "http502" => Answer::Html502,
            "http429" => Answer::TooMany,
            "http409" => Answer::InProgress,
            "garbage" => Answer::Garbage,
            "cut" => Answer::Cut,
            name => Answer::Foreign(Foreign::parse(name)?),
        };
        Some(Fault { when, answer, times })
    }
}

impl Foreign {
    fn parse(directive: &str) -> Option<Foreign> {
        match split_number(directive) {
            ("cached", None) => return Some(Foreign::Cached),
            ("page", Some(status @ (200 | 402 | 403 | 404))) => return Some(Foreign::Page(status as u16)),
            (_, _) => {}
        }
        let names = [("stray", Name::Stranger), ("nameless", Name::None), ("amount", Name::OtherAmount)];
        let (rest, name) =
            names.iter().find_map(|(prefix, name)| Some((directive.strip_prefix(prefix)?, *name)))?;
        let claim = match rest {
            "ok" => Claim::Succeeded,
            "no" => Claim::Declined,
            "bad" => Claim::Rejected,
            "none" => Claim::NotFound,
            _ => return None,
        };
        Some(Foreign::Document(name, claim))
    }
}

/// `slow200` is (`slow`, 200).
fn split_number(directive: &str) -> (&str, Option<u64>) {
    let digits = directive.len() - directive.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (name, number) = directive.split_at(directive.len() - digits);
    (name, number.parse().ok())
}

/// A number that depends on nothing but its arguments, the same in every release: FNV-1a, then a finalizer.
pub fn roll(seed: u64, reference: &str, call: u32) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in seed.to_le_bytes().iter().chain(reference.as_bytes()).chain(&call.to_le_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Evenly in [0, 1).
fn unit(roll: u64) -> f64 {
    (roll >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
