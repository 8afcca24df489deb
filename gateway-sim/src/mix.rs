//! What is done with client numbers without a word of their own.

use serde::{Deserialize, Serialize};

use crate::script::{Script, roll};

/// As `PUT /script` takes it and `GET /script` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// For what no share takes.
    #[serde(default = "approve")]
    pub default: String,
    #[serde(default)]
    pub mix: Vec<Share>,
}

/// So many percent of the references get this script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub percent: u32,
    pub words: String,
}

fn approve() -> String {
    "approve".to_owned()
}

/// Words that were understood.
#[derive(Clone, Debug)]
pub struct Mix {
    words: Words,
    default: Script,
    /// Percentages added up, ascending.
    shares: Vec<(u32, Script)>,
}

/// Its place among the draws of a reference; calls count from 1.
const DRAW: u32 = u32::MAX - 1;

impl Mix {
    /// One script for all.
    pub fn plain(words: &str) -> Result<Mix, String> {
        Mix::of(Words { default: words.to_owned(), mix: Vec::new() })
    }

    /// # Errors
    /// A script without a known word, or shares beyond 100 percent: says which.
    pub fn of(words: Words) -> Result<Mix, String> {
        let script = |words: &str| {
            Script::parse(words).ok_or_else(|| format!("`{words}` has no word that is known; see script.rs"))
        };
        let default = script(&words.default)?;
        let (mut sum, mut shares) = (0u32, Vec::new());
        for share in &words.mix {
            sum = sum.saturating_add(share.percent);
            shares.push((sum, script(&share.words)?));
        }
        if sum > 100 {
            return Err(format!("the shares are {sum} percent"));
        }
        Ok(Mix { default, shares, words })
    }

    pub fn words(&self) -> &Words {
        &self.words
    }

    /// A function of seed and reference, whatever came before.
    pub fn script(&self, seed: u64, reference: &str) -> &Script {
        let drawn = (roll(seed, reference, DRAW) % 100) as u32;
        self.shares.iter().find(|(below, _)| drawn < *below).map_or(&self.default, |(_, script)| script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix() -> Mix {
        let share = |percent, words: &str| Share { percent, words: words.to_owned() };
        Mix::of(Words { default: approve(), mix: vec![share(10, "decline"), share(5, "thenhang")] })
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
        let share = |percent| Share { percent, words: "decline".to_owned() };
        assert!(Mix::of(Words { default: approve(), mix: vec![share(60), share(41)] }).is_err());
    }
}
