//! Shares the permits among users and services, so that none takes all of them.
//!
//! * While less than half of the permits are in use, a user may take any number. While less than three quarters are in
//!   use, a service may.
//! * Beyond that, a user or service with its full share gets nothing. So hanging calls leave room for other users of the
//!   same service, and for other services.
//! * The sizes follow from the number of permits.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::charge::Charge;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub service: Part,
    pub user: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// While fewer permits than these are in use, anyone gets one.
    pub free: usize,
    /// The maximum of one user or service beyond that.
    pub share: usize,
}

impl Part {
    fn has_room(self, all: usize, taken: usize) -> bool {
        all < self.free || taken < self.share
    }
}

impl Limits {
    /// The limits for this many permits, with the shares in percent. Everybody has at least one.
    pub fn new(permits: usize, service_percent: usize, user_percent: usize) -> Limits {
        let part = |percent: usize| (permits * percent / 100).max(1);
        let service = Part { free: part(75), share: part(service_percent) };
        Limits { service, user: Part { free: part(50), share: part(user_percent) } }
    }
}

/// The shares in use; clones count together.
#[derive(Clone)]
pub struct Shares(Arc<Mutex<Usage>>);

struct Usage {
    limits: Limits,
    all: usize,
    services: HashMap<String, usize>,
    users: HashMap<Uuid, usize>,
}

/// A share, given back when dropped.
pub struct Share {
    shares: Shares,
    service_id: String,
    user_id: Uuid,
}

impl Shares {
    pub fn new(limits: Limits) -> Shares {
        let (services, users) = (HashMap::new(), HashMap::new());
        Shares(Arc::new(Mutex::new(Usage { limits, all: 0, services, users })))
    }

    /// A share for this charge; `None` when its user or its service has its full share.
    pub fn take(&self, charge: &Charge) -> Option<Share> {
        let mut taken = self.taken();
        let service = taken.services.get(&charge.service_id).copied().unwrap_or(0);
        let user = taken.users.get(&charge.user_id).copied().unwrap_or(0);
        let Limits { service: of_service, user: of_user } = taken.limits;
        if !of_service.has_room(taken.all, service) || !of_user.has_room(taken.all, user) {
            return None;
        }
        taken.all += 1;
        taken.services.insert(charge.service_id.clone(), service + 1);
        taken.users.insert(charge.user_id, user + 1);
        drop(taken);
        Some(Share { shares: self.clone(), service_id: charge.service_id.clone(), user_id: charge.user_id })
    }

    fn taken(&self) -> MutexGuard<'_, Usage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= 1;
        give_back(&mut taken.services, &self.service_id);
        give_back(&mut taken.users, &self.user_id);
    }
}

/// Removes entries that reach 0, so that the maps are only as large as the calls under way.
fn give_back<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(user: u128, service: &str) -> Charge {
        Charge {
            payment_id: Uuid::now_v7(),
            user_id: Uuid::from_u128(user),
            client_number: "1".to_owned(),
            service_id: service.to_owned(),
            amount: 1,
            traceparent: None,
        }
    }

    /// As many shares as there are for it, up to `max`.
    fn take(shares: &Shares, max: usize, charge: &Charge) -> Vec<Share> {
        (0..max).map_while(|_| shares.take(charge)).collect()
    }

    #[test]
    fn limits_follow_the_number_of_permits() {
        let (service, user) = (Part { free: 150, share: 50 }, Part { free: 100, share: 10 });
        assert_eq!(Limits::new(200, 25, 5), Limits { service, user });
        let one = Part { free: 1, share: 1 };
        assert_eq!(Limits::new(1, 25, 5), Limits { service: one, user: one });
    }

    #[test]
    fn one_user_gets_the_free_ones_and_the_others_the_rest() {
        let shares = Shares::new(Limits::new(40, 25, 5));
        let hung = take(&shares, 1_000, &charge(1, "power"));
        assert_eq!(hung.len(), 20);
        assert_eq!(take(&shares, 1_000, &charge(2, "power")).len(), 2, "a share of another user");
        let same: Vec<Share> = (2..1_000).filter_map(|user| shares.take(&charge(user, "power"))).collect();
        assert_eq!(same.len(), 10, "of the same service up to three quarters");
        let others: Vec<Share> = (2..1_000).filter_map(|user| shares.take(&charge(user, "water"))).collect();
        assert_eq!(others.len(), 10, "another service has its share");
        drop((hung, same));
        assert_eq!(take(&shares, 1_000, &charge(1, "power")).len(), 10, "up to the half again");
        drop(others);
        let taken = shares.taken();
        assert_eq!((taken.all, taken.users.len(), taken.services.len()), (0, 0, 0));
    }
}
