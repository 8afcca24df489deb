//! Reads the profiles of loads, `compose/k6/profiles.json`. The script of k6 reads the same file.
//!
//! * A field that nobody knows, one that is missing, and a value that makes no load are refused by name.
//! * The options of the command change rate, seconds and users, and never the limits.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

const PROFILES: &str = include_str!("../../../compose/k6/profiles.json");
/// Payments that may be under way at once, in seconds of the step's rate. One more is not asked for: it is dropped.
const UNDER_WAY_SECONDS_MAX: u64 = 10;
/// More than a machine can be asked for; a longer step than a day is a mistake.
const RATE_MAX: u32 = 100_000;
const SECONDS_MAX: u32 = 86_400;
const USERS_MAX: usize = 100_000;

/// A load, and what is promised under it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// In a sentence.
    pub purpose: String,
    /// Users that pay, each with money enough.
    pub users: usize,
    /// How unequal they are: the n-th pays with weight 1 / n^zipf. 0: all alike.
    pub zipf: f64,
    /// The gateway declines one payment in so many; 0: none.
    pub declined_one_in: u32,
    /// One request in so many is sent again, and has to be answered with the same bytes; 0: none.
    pub replayed_one_in: u32,
    /// One after the other.
    pub steps: Vec<Step>,
    /// Seconds between two steps.
    pub pause_seconds: u32,
    /// Whether the steps look for the highest rate that is held. Then no step has to be.
    pub finds_knee: bool,
    pub limits: Limits,
}

/// So many payments per second, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub rate: u32,
    pub seconds: u32,
}

/// Latencies that a held step keeps, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// From the moment a payment was meant to be asked for until the 201.
    pub accept_p99_ms: u32,
    /// From the 201 until the end.
    pub settle_p95_ms: u32,
    pub settle_p99_ms: u32,
}

/// Changes of a profile, for a machine or a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Payments per second, of a profile with one step.
    pub rate: Option<u32>,
    /// Seconds of each step.
    pub seconds: Option<u32>,
    pub users: Option<usize>,
}

impl Step {
    pub fn payments(self) -> u64 {
        u64::from(self.rate) * u64::from(self.seconds)
    }

    /// Payments that may be under way at once.
    pub fn under_way_max(self) -> u64 {
        u64::from(self.rate) * UNDER_WAY_SECONDS_MAX
    }
}

impl Profile {
    /// # Errors
    /// When there is no profile of this name, or when the file or the changed profile makes no load.
    pub fn named(name: &str, changes: Changes) -> Result<Self> {
        let mut profiles = parse(PROFILES)?;
        let names: Vec<String> = profiles.keys().cloned().collect();
        let profile = profiles.remove(name);
        let profile =
            profile.with_context(|| format!("there is no load {name}; there is: {}", names.join(", ")))?;
        profile.changed(changes)
    }

    fn changed(mut self, Changes { rate, seconds, users }: Changes) -> Result<Self> {
        if let Some(rate) = rate {
            ensure!(self.steps.len() == 1, "a rate can be chosen for a load of one step only");
            self.steps.iter_mut().for_each(|step| step.rate = rate);
        }
        if let Some(seconds) = seconds {
            self.steps.iter_mut().for_each(|step| step.seconds = seconds);
        }
        self.users = users.unwrap_or(self.users);
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        let Self { users, zipf, steps, limits, .. } = self;
        ensure!(!self.purpose.trim().is_empty(), "purpose: a load says what it is for");
        ensure!((1..=USERS_MAX).contains(users), "users: from 1 to {USERS_MAX}");
        ensure!((0.0..=10.0).contains(zipf), "zipf: from 0 to 10");
        ensure!(!steps.is_empty(), "steps: there is none");
        for (nth, Step { rate, seconds }) in (1..).zip(steps) {
            ensure!(
                (1..=RATE_MAX).contains(rate),
                "rate of step {nth}: from 1 to {RATE_MAX} payments per second"
            );
            ensure!((1..=SECONDS_MAX).contains(seconds), "seconds of step {nth}: from 1 to {SECONDS_MAX}");
        }
        ensure!(self.pause_seconds <= SECONDS_MAX, "pause_seconds: at most {SECONDS_MAX}");
        let Limits { accept_p99_ms, settle_p95_ms, settle_p99_ms } = *limits;
        ensure!(accept_p99_ms > 0 && settle_p95_ms > 0, "limits: nothing takes no time");
        ensure!(settle_p95_ms <= settle_p99_ms, "limits: settle_p95_ms is above settle_p99_ms");
        if self.finds_knee {
            let rises = steps.windows(2).all(|pair| matches!(pair, [a, b] if a.rate < b.rate));
            ensure!(
                rises && steps.len() > 1,
                "steps: to find a knee, each has a higher rate than the one before"
            );
        }
        Ok(())
    }
}

/// Every profile of the file, by name.
fn parse(text: &str) -> Result<BTreeMap<String, Profile>> {
    let profiles: BTreeMap<String, Profile> =
        serde_json::from_str(text).context("compose/k6/profiles.json")?;
    for (name, profile) in &profiles {
        profile.check().with_context(|| format!("compose/k6/profiles.json: {name}"))?;
    }
    Ok(profiles)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn profiles() -> Value {
        serde_json::from_str(PROFILES).unwrap()
    }

    fn refusal(profiles: &Value) -> String {
        format!("{:#}", parse(&profiles.to_string()).unwrap_err())
    }

    #[test]
    fn the_file_has_the_loads_that_are_documented() {
        let names: Vec<String> = parse(PROFILES).unwrap().into_keys().collect();
        assert_eq!(names, ["hot-account", "load", "smoke", "soak", "spike", "stress"]);
        let soak = Profile::named("soak", Changes::default()).unwrap();
        assert_eq!(soak.steps.iter().map(|step| step.seconds).sum::<u32>(), 30 * 60);
        let knees = parse(PROFILES).unwrap().into_iter().filter(|(_, profile)| profile.finds_knee);
        assert_eq!(knees.map(|(name, _)| name).collect::<Vec<_>>(), ["stress"]);
    }

    #[test]
    fn a_mistake_is_refused_by_name() {
        for (pointer, value, expected) in [
            ("/smoke/steps/0/rate", json!(0), "rate of step 1"),
            ("/smoke/steps/0/rate", json!(-1), "invalid value"),
            ("/smoke/steps/0/rate", json!(1.5), "invalid type"),
            ("/smoke/steps/0/rate", json!("50"), "invalid type"),
            ("/smoke/steps/0/rate", json!(100_001), "rate of step 1"),
            ("/spike/steps/2/seconds", json!(0), "seconds of step 3"),
            ("/smoke/steps", json!([]), "steps: there is none"),
            ("/smoke/users", json!(0), "users"),
            ("/smoke/zipf", json!(11), "zipf"),
            ("/smoke/purpose", json!(" "), "purpose"),
            ("/smoke/limits/accept_p99_ms", json!(0), "limits"),
            ("/smoke/limits/settle_p99_ms", json!(1), "settle_p95_ms is above settle_p99_ms"),
            ("/smoke/finds_knee", json!(true), "to find a knee"),
            ("/stress/steps/1/rate", json!(100), "to find a knee"),
            ("/smoke/finds_knee", json!("yes"), "invalid type"),
        ] {
            let mut changed = profiles();
            *changed.pointer_mut(pointer).unwrap() = value;
            let refusal = refusal(&changed);
            assert!(refusal.contains(expected), "{pointer}: {refusal}");
            assert!(refusal.contains("compose/k6/profiles.json"), "{refusal}");
        }
    }

    #[test]
    fn no_field_is_unknown_and_none_is_missing() {
        for object in ["/smoke", "/smoke/steps/0", "/smoke/limits"] {
            let fields: Vec<String> =
                profiles().pointer(object).unwrap().as_object().unwrap().keys().cloned().collect();
            for field in fields {
                let mut changed = profiles();
                changed.pointer_mut(object).unwrap().as_object_mut().unwrap().remove(&field);
                assert!(refusal(&changed).contains(&format!("missing field `{field}`")), "{object} {field}");
            }
            let mut changed = profiles();
            changed.pointer_mut(object).unwrap()["ratee"] = json!(1);
            assert!(refusal(&changed).contains("unknown field `ratee`"), "{object}");
        }
    }

    #[test]
    fn an_unknown_load_is_answered_with_those_there_are() {
        let unknown = Profile::named("nothing", Changes::default()).unwrap_err().to_string();
        assert!(unknown.contains("hot-account, load, smoke"), "{unknown}");
    }

    #[test]
    fn changes_keep_a_load_a_load() {
        let changes = Changes { rate: Some(200), seconds: Some(5), users: Some(3) };
        let smoke = Profile::named("smoke", changes).unwrap();
        assert_eq!((smoke.steps, smoke.users), (vec![Step { rate: 200, seconds: 5 }], 3));
        let seconds = Changes { seconds: Some(1), ..Changes::default() };
        let spike = Profile::named("spike", seconds).unwrap();
        assert_eq!(spike.steps.iter().map(|step| step.payments()).collect::<Vec<_>>(), [50, 400, 50]);
        for (name, changes) in [
            ("smoke", Changes { rate: Some(0), ..Changes::default() }),
            ("smoke", Changes { seconds: Some(0), ..Changes::default() }),
            ("smoke", Changes { users: Some(0), ..Changes::default() }),
            ("spike", Changes { rate: Some(10), ..Changes::default() }),
        ] {
            assert!(Profile::named(name, changes).is_err(), "{name} {changes:?}");
        }
    }
}
