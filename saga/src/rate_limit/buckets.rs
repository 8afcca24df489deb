//! The buckets of all users: a store of `governor` that is bounded.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use prometheus::IntCounter;
use uuid::Uuid;

/// For each user the time at which the bucket is full again, counted from the start of the limiter.
pub(super) struct Buckets {
    full_at: Mutex<HashMap<Uuid, Nanos>>,
    users_max: usize,
    /// Requests of users for whom there was no room.
    unlimited: IntCounter,
}

impl Buckets {
    pub(super) fn new(users_max: usize, unlimited: IntCounter) -> Self {
        Self { full_at: Mutex::default(), users_max, unlimited }
    }

    /// The map stays whole whatever panicked while it was locked.
    fn full_at(&self) -> MutexGuard<'_, HashMap<Uuid, Nanos>> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Buckets {
    type Key = Uuid;

    fn measure_and_replace<T, F, E>(&self, user_id: &Uuid, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut all = self.full_at();
        if let Some(full_at) = all.get_mut(user_id) {
            let (outcome, later) = decide(Some(*full_at))?;
            *full_at = later;
            return Ok(outcome);
        }
        let (outcome, full_at) = decide(None)?;
        if all.len() < self.users_max {
            all.insert(*user_id, full_at);
        } else {
            self.unlimited.inc();
        }
        Ok(outcome)
    }
}

impl ShrinkableKeyedStateStore<Uuid> for Buckets {
    fn retain_recent(&self, drop_below: Nanos) {
        self.full_at().retain(|_, full_at| *full_at > drop_below);
    }

    fn shrink_to_fit(&self) {
        self.full_at().shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.full_at().len()
    }

    fn is_empty(&self) -> bool {
        self.full_at().is_empty()
    }
}
