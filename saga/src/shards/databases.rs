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
    /// Those that are away come last.
    pub fn pools(&self) -> Vec<Pool> {
        match self {
            Self::One(pool) => vec![pool.clone()],
            Self::Shards(router) => router.shards().into_iter().map(|(_, pool)| pool).collect(),
        }
    }

    /// Waits for work on one of them, which has a limit where there are several ([`Router::in_time`]).
    ///
    /// # Errors
    /// When the work failed, or did not end in time.
    pub async fn in_time<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        match self {
            Self::One(_) => work.await,
            Self::Shards(router) => router.in_time(work).await,
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
