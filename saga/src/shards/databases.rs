//! The databases of a service, for what is done in each of them and is about no user.

use super::Router;
use crate::postgres::Pool;

/// One database, or the shards as they are listed now.
#[derive(Clone)]
pub enum Databases {
    One(Pool),
    Shards(Router),
}

impl Databases {
    pub fn pools(&self) -> Vec<Pool> {
        match self {
            Self::One(pool) => vec![pool.clone()],
            Self::Shards(router) => router.shards().into_iter().map(|(_, pool)| pool).collect(),
        }
    }
}

impl From<Pool> for Databases {
    fn from(pool: Pool) -> Self {
        Self::One(pool)
    }
}

impl From<&Pool> for Databases {
    fn from(pool: &Pool) -> Self {
        Self::One(pool.clone())
    }
}

impl From<&Router> for Databases {
    fn from(router: &Router) -> Self {
        Self::Shards(router.clone())
    }
}
