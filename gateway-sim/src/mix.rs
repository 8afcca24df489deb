//! Scripts for client numbers that carry no directive of their own.
//!
//! * A reference gets one script, drawn by its share of percent. The draw is a function of seed and reference.
//! * All shares together are at most 100 percent; the default script takes what is left.

use serde::{Deserialize, Serialize};

use crate::script::{Script, roll};

/// As `PUT /script` takes it and `GET /script` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixConfig {
    /// The script of references that no share takes.
    #[serde(default = "approve")]
    pub default: String,
    #[serde(default)]
    pub mix: Vec<Share>,
}

/// A script for this many percent of the references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub percent: u32,
    #[serde(rename = "words")]
    pub script: String,
}

fn approve() -> String {
    "approve".to_owned()
}

/// A [`MixConfig`] whose scripts have been parsed.
#[derive(Clone, Debug)]
pub struct Mix {
    config: MixConfig,
    default: Script,
    /// Percentages added up, ascending.
    shares: Vec<(u32, Script)>,
}

/// Number of this draw among those of a reference. Calls are numbered from 1.
const DRAW: u32 = u32::MAX - 1;

impl Mix {
    /// One script for all.
    pub fn plain(script: &str) -> Result<Mix, String> {
        Mix::of(MixConfig { default: script.to_owned(), mix: Vec::new() })
    }

    /// # Errors
    /// When a script has no known directive, or when the shares exceed 100 percent; the text says which.
    pub fn of(config: MixConfig) -> Result<Mix, String> {
        let script = |script: &str| {
            Script::parse(script).ok_or_else(|| format!("script `{script}` has no known directive: use those of the table in gateway-sim/src/script.rs"))
        };
        let default = script(&config.default)?;
        let (mut sum, mut shares) = (0u32, Vec::new());
        for share in &config.mix {
            sum = sum.saturating_add(share.percent);
            shares.push((sum, script(&share.script)?));
        }
        if sum > 100 {
            return Err(format!("the shares add up to {sum} percent: lower them to at most 100"));
        }
        Ok(Mix { default, shares, config })
    }

    pub fn config(&self) -> &MixConfig {
        &self.config
    }

    /// The script of a reference: a function of seed and reference alone.
    pub fn script(&self, seed: u64, reference: &str) -> &Script {
        let drawn = (roll(seed, reference, DRAW) % 100) as u32;
        self.shares.iter().find(|(below, _)| drawn < *below).map_or(&self.default, |(_, script)| script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix() -> Mix {
        let share = |percent, script: &str| Share { percent, script: script.to_owned() };
        Mix::of(MixConfig { default: approve(), mix: vec![share(10, "decline"), share(5, "thenhang")] })
            .expect("a mix")
    }

    #[test]
    fn shares_are_about_as_large_as_they_say_and_the_same_every_time() {
        let (one, other) = (mix(), mix());
        let mut counts = [0; 3];
        for n in 0..10_000 {
            let reference = n.to_string();
            let script = one.script(3, &reference);
            assert_eq!(script, other.script(3, &reference));
            let place = if script.fault.is_some() { 2 } else { usize::from(*script != Script::default()) };
            counts[place] += 1;
        }
        assert!((900..1_100).contains(&counts[1]) && (400..600).contains(&counts[2]), "{counts:?}");
        assert!((0..100).any(|n: u32| one.script(3, &n.to_string()) != one.script(4, &n.to_string())));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(Mix::plain("nonsense").is_err());
        let share = |percent| Share { percent, script: "decline".to_owned() };
        assert!(Mix::of(MixConfig { default: approve(), mix: vec![share(60), share(41)] }).is_err());
    }
}
