//! What the gateway does with a charge, told by words in its `client_number`.
//!
//! Words follow the first `-` and are separated by `-`: `5551234-decline-slow200`. Words it does not know
//! mean nothing, so that ordinary numbers may have dashes. A number without any known word gets the default
//! script (`SCRIPT`, `PUT /script`). Everything drawn by chance is a function of seed, reference and call.
//!
//! | word | effect |
//! |---|---|
//! | `approve` | approve; the way to be left alone by a default script |
//! | `decline` | 402, remembered under the key |
//! | `decline200` | the same with status 200, as some gateways do |
//! | `mixN` | decline N percent of the references |
//! | `slowN` | decide after N ms |
//! | `jitterN` | decide after 0 to N ms, evenly |
//! | `tailN` | decide after a long-tailed time: median N ms, one in a hundred takes ten times as long |
//! | `lagN` | the inquiry does not see the charge for N ms |
//! | `hang` | decide nothing, never answer |
//! | `reset` | decide nothing, reset the connection |
//! | `http500` `http502` `http429` | decide nothing, answer so (502: an HTML page; 429: `Retry-After: 1`) |
//! | `garbage` | decide nothing, answer 200 with a body that is not JSON |
//! | `cut` | decide nothing, promise a body and stop in the middle of it |
//! | `then` + one of these six, e.g. `thenhang`, `thenhttp500` | decide and remember, *then* misbehave so |
//! | `lateN` | never answer, and decide N ms later |
//! | one of the misbehaviours + `xN`, e.g. `hangx3` | misbehave in the first N calls of a reference (otherwise once) |

use std::time::Duration;

/// What to do with the charges of one client number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub decision: Decision,
    pub latency: Latency,
    /// How long the inquiry does not see the charge.
    pub lag: Duration,
    pub fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Approve,
    /// Declined with this status, 402 or 200.
    Decline(u16),
    /// This many percent of the references are declined.
    Mix(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// The latency every gateway call has by configuration.
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

/// When the charge is decided, seen from the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    Before,
    Later(Duration),
}

/// What the caller gets to see of a misbehaving call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Hang,
    Reset,
    Status500,
    Html502,
    TooMany,
    Garbage,
    Cut,
}

impl Default for Script {
    fn default() -> Self {
        Self { decision: Decision::Approve, latency: Latency::Base, lag: Duration::ZERO, fault: None }
    }
}

impl Script {
    /// The script in `client_number`, or `default` if it has none.
    pub fn of(client_number: &str, default: &Script) -> Script {
        match client_number.split_once('-') {
            Some((_, words)) => Script::parse(words).unwrap_or_else(|| default.clone()),
            None => default.clone(),
        }
    }

    /// Reads words separated by `-`; nothing if none of them is known.
    pub fn parse(words: &str) -> Option<Script> {
        let mut script = Script::default();
        let mut known = false;
        for word in words.split('-') {
            known |= script.read(word);
        }
        known.then_some(script)
    }

    fn read(&mut self, word: &str) -> bool {
        if let Some(fault) = Fault::parse(word) {
            self.fault = Some(fault);
            return true;
        }
        let (name, number) = split_number(word);
        let millis = Duration::from_millis(number.unwrap_or(0));
        match (name, number) {
            ("approve", None) => self.decision = Decision::Approve,
            ("decline", None) => self.decision = Decision::Decline(402),
            ("decline", Some(200)) => self.decision = Decision::Decline(200),
            ("mix", Some(percent @ 0..=100)) => self.decision = Decision::Mix(percent as u32),
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
            Decision::Approve => None,
            Decision::Decline(status) => Some(status),
            Decision::Mix(percent) => {
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

    /// The misbehaviour of call number `call` (1, 2, …), if it has one.
    pub fn fault(&self, call: u32) -> Option<Fault> {
        self.fault.filter(|fault| call <= fault.times)
    }
}

impl Fault {
    fn parse(word: &str) -> Option<Fault> {
        let (word, times) = match word.rsplit_once('x') {
            Some((head, number)) => match number.parse() {
                Ok(times) => (head, times),
                Err(_) => (word, 1),
            },
            None => (word, 1),
        };
        if let ("late", Some(millis)) = split_number(word) {
            return Some(Fault {
                when: When::Later(Duration::from_millis(millis)),
                answer: Answer::Hang,
                times,
            });
        }
        let (when, name) = match word.strip_prefix("then") {
            Some(name) => (When::Before, name),
            None => (When::Never, word),
        };
        let answer = match name {
            "hang" => Answer::Hang,
            "reset" => Answer::Reset,
            "http500" => Answer::Status500,
            "http502" => Answer::Html502,
            "http429" => Answer::TooMany,
            "garbage" => Answer::Garbage,
            "cut" => Answer::Cut,
            _ => return None,
        };
        Some(Fault { when, answer, times })
    }
}

/// `slow200` is (`slow`, 200).
fn split_number(word: &str) -> (&str, Option<u64>) {
    let digits = word.len() - word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (name, number) = word.split_at(word.len() - digits);
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
mod tests {
    use super::*;

    fn script(number: &str) -> Script {
        Script::of(number, &Script::default())
    }

    #[test]
    fn ordinary_numbers_are_approved() {
        for number in ["5551234", "555-1234", "", "-", "555-12-34-500", "555-declined", "555-x3"] {
            assert_eq!(script(number), Script::default(), "{number}");
        }
    }

    #[test]
    fn every_word_of_the_table() {
        let ms = Duration::from_millis;
        let base = Script::default();
        let decided = |decision| Script { decision, ..base.clone() };
        let timed = |latency| Script { latency, ..base.clone() };
        let faulty =
            |when, answer, times| Script { fault: Some(Fault { when, answer, times }), ..base.clone() };
        let table = [
            ("1-approve", base.clone()),
            ("1-decline", decided(Decision::Decline(402))),
            ("1-decline200", decided(Decision::Decline(200))),
            ("1-mix10", decided(Decision::Mix(10))),
            ("1-slow200", timed(Latency::Fixed(ms(200)))),
            ("1-jitter50", timed(Latency::Even(ms(50)))),
            ("1-tail20", timed(Latency::Tail(ms(20)))),
            ("1-lag300", Script { lag: ms(300), ..base.clone() }),
            ("1-hang", faulty(When::Never, Answer::Hang, 1)),
            ("1-reset", faulty(When::Never, Answer::Reset, 1)),
            ("1-http500", faulty(When::Never, Answer::Status500, 1)),
            ("1-http502", faulty(When::Never, Answer::Html502, 1)),
            ("1-http429x7", faulty(When::Never, Answer::TooMany, 7)),
            ("1-garbage", faulty(When::Never, Answer::Garbage, 1)),
            ("1-cut", faulty(When::Never, Answer::Cut, 1)),
            ("1-thenhang", faulty(When::Before, Answer::Hang, 1)),
            ("1-thenresetx2", faulty(When::Before, Answer::Reset, 2)),
            ("1-thenhttp500", faulty(When::Before, Answer::Status500, 1)),
            ("1-late900", faulty(When::Later(ms(900)), Answer::Hang, 1)),
            ("1-late900x2", faulty(When::Later(ms(900)), Answer::Hang, 2)),
        ];
        for (number, expected) in table {
            assert_eq!(script(number), expected, "{number}");
        }
    }

    #[test]
    fn words_combine_and_a_number_overrides_the_default() {
        let both = script("555-decline-thenhangx2-slow5");
        assert_eq!(both.decision, Decision::Decline(402));
        assert_eq!(both.latency, Latency::Fixed(Duration::from_millis(5)));
        assert_eq!(both.fault(2).map(|f| f.answer), Some(Answer::Hang));
        assert_eq!(both.fault(3), None);
        let default = Script::parse("decline").expect("a known word");
        assert_eq!(Script::of("5551234", &default), default);
        assert_eq!(Script::of("555-approve", &default), Script::default());
    }

    #[test]
    fn chance_depends_on_seed_reference_and_call_alone() {
        assert_eq!(roll(1, "a", 1), roll(1, "a", 1));
        let all = [roll(1, "a", 1), roll(2, "a", 1), roll(1, "b", 1), roll(1, "a", 2)];
        let distinct: std::collections::HashSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), 4);
        // The value itself is pinned: a run can be repeated with a later release.
        assert_eq!(roll(7, "0198c0de-0000-7000-8000-000000000001", 1), 15_921_235_268_590_213_891);
    }

    #[test]
    fn a_mix_declines_about_as_many_as_it_says() {
        let mix = script("1-mix10");
        let declined = (0..10_000).filter(|n| mix.declines(3, &n.to_string()).is_some()).count();
        assert!((900..1_100).contains(&declined), "{declined}");
    }

    #[test]
    fn latencies_have_the_shape_they_promise() {
        let base = Duration::from_millis(1);
        let sorted = |number: &str| {
            let script = script(number);
            let mut all: Vec<u128> =
                (0..10_000).map(|n| script.delay(base, 5, &n.to_string(), 1).as_micros()).collect();
            all.sort_unstable();
            all
        };
        let even = sorted("1-jitter100");
        assert!((45_000..55_000).contains(&even[5_000]) && even[9_999] < 100_000);
        let tail = sorted("1-tail20");
        assert!((19_000..21_000).contains(&tail[5_000]), "{}", tail[5_000]);
        assert!((150_000..260_000).contains(&tail[9_900]), "{}", tail[9_900]);
        assert_eq!(sorted("1")[9_999], 1_000);
    }
}
