//! The users that pay, with money, picked uniformly or with a few hot ones.

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use rand::Rng;
use uuid::Uuid;

use coroctl::client::Client;

/// Far more than any benchmark spends.
const DEPOSIT: i64 = 1_000_000_000_000;
const DEPOSITS_AT_ONCE: usize = 32;

/// Users and the probability of each.
#[derive(Clone)]
pub struct Users {
    ids: Vec<Uuid>,
    /// Sum of the weights up to and including each.
    weights: Vec<f64>,
}

impl Users {
    /// The weight of the n-th user is `1 / n ^ zipf`: 0 is uniform, at 2 the first user pays three of five.
    pub fn new(ids: Vec<Uuid>, zipf: f64) -> Result<Self> {
        ensure!(!ids.is_empty(), "there must be at least one user");
        ensure!((0.0..=10.0).contains(&zipf), "zipf must lie between 0 and 10");
        let mut sum = 0.0;
        let weights = (1..=ids.len())
            .map(|n| {
                sum += (n as f64).powf(-zipf);
                sum
            })
            .collect();
        Ok(Self { ids, weights })
    }

    /// New users, each with a deposit made through the API.
    pub async fn fund(client: &Client, count: usize, zipf: f64) -> Result<Self> {
        let funded =
            stream::iter(0..count).map(|_| client.user_with(DEPOSIT)).buffer_unordered(DEPOSITS_AT_ONCE);
        Self::new(funded.try_collect().await?, zipf)
    }

    pub fn pick(&self, random: &mut impl Rng) -> Uuid {
        let all = self.weights.last().copied().unwrap_or_default();
        let point = random.random_range(0.0..all);
        let at = self.weights.partition_point(|weight| *weight <= point);
        self.ids[at.min(self.ids.len() - 1)]
    }

    pub fn ids(&self) -> &[Uuid] {
        &self.ids
    }

    /// Disjoint users for each of `parts` workers, with the same distribution.
    pub fn split(&self, parts: usize, zipf: f64) -> Result<Vec<Self>> {
        let share = |part: usize| self.ids.iter().skip(part).step_by(parts).copied().collect();
        (0..parts).map(|part| Self::new(share(part), zipf)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn share_of_first(zipf: f64) -> f64 {
        let ids: Vec<Uuid> = (0..1000).map(Uuid::from_u128).collect();
        let users = Users::new(ids, zipf).unwrap();
        let mut random = SmallRng::seed_from_u64(1);
        let first = (0..10_000).filter(|_| users.pick(&mut random) == Uuid::from_u128(0)).count();
        first as f64 / 10_000.0
    }

    #[test]
    fn uniform_and_hot() {
        assert!(share_of_first(0.0) < 0.01);
        assert!((0.58..0.64).contains(&share_of_first(2.0)));
    }

    #[test]
    fn parts_share_no_user_and_leave_none_out() {
        let users = Users::new((0..10).map(Uuid::from_u128).collect(), 0.0).unwrap();
        let mut all: Vec<Uuid> =
            users.split(3, 0.0).unwrap().iter().flat_map(|part| part.ids().to_vec()).collect();
        all.sort_unstable();
        assert_eq!(all, users.ids());
    }
}
