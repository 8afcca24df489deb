//! What a statement names of the shards: the buckets that it is about, and at which epochs this process knows them.
//!
//! * A statement gets both as arrays, and gives them to `require_ownership`. In its `where` they are a condition without a
//!   column, which the server evaluates once, before it reads a row, and whether or not there are rows.
//! * A transaction of several statements is refused as a whole by the first of them that is refused.
//! * A statement that looks through a table (a sweep, a walk) names none. It leaves out the rows of buckets that are not owned,
//!   and nothing is concluded from a row that it does not find.

use std::fmt;

use anyhow::Context;
use tokio_postgres::Row;

use crate::postgres::{self, Client, Parameters, Pool};

/// The SQLSTATE by which a database refuses a statement. Its class is one that the standard leaves to implementations, and
/// that Postgres does not use.
const NOT_OWNED: &str = "SB001";

/// A shard, and buckets that it owns as far as this process knows.
#[derive(Clone)]
pub struct Ownership {
    pub(super) pool: Pool,
    pub(super) shard: usize,
    /// The reading of the map that says so.
    pub(super) reading: u64,
    /// Of the users that a statement is about, each bucket once.
    pub buckets: Vec<i16>,
    /// As many.
    pub epochs: Vec<i64>,
}

impl Ownership {
    /// A connection to the shard.
    ///
    /// # Errors
    /// When there is none: the shard is away, or overloaded.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.pool.get().await.context("no connection to the database")
    }

    /// The rows of one statement ([`postgres::query`]).
    ///
    /// # Errors
    /// As there; and when the shard refuses ([`is_refused`]).
    pub async fn query(
        &self,
        text: &str,
        parameters: Parameters<'_>,
        failed: &'static str,
    ) -> anyhow::Result<Vec<Row>> {
        postgres::query(&self.pool, text, parameters, failed).await
    }
}

/// The pool has no such form; the buckets say enough.
impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, buckets, epochs, pool: _, reading: _ } = self;
        f.debug_struct("Ownership")
            .field("shard", shard)
            .field("buckets", buckets)
            .field("epochs", epochs)
            .finish()
    }
}

/// Why no shard can be asked about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unowned {
    /// The bucket is being moved. It lasts a fraction of a second.
    Moving,
    /// No shard that answers owns the bucket.
    Away,
    /// Two shards say that they own it.
    Contested,
    /// The users of one statement are on several shards.
    Apart,
}

impl fmt::Display for Unowned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moving => "no shard owns the user's bucket: it is being moved, and the request is repeated",
            Self::Away => "no connection to the database: no shard that answers owns the user's bucket",
            Self::Contested => {
                "two shards own the user's bucket at one epoch: an operator has to find out which one is right"
            }
            Self::Apart => "the users of one statement are on several shards; this is a defect",
        })
    }
}

impl std::error::Error for Unowned {}

/// Whether a database refused the work, since it does not own a bucket at the epoch that was named. Nothing was written then.
pub fn is_refused(error: &anyhow::Error) -> bool {
    let state = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())
        .and_then(tokio_postgres::Error::code);
    state.is_some_and(|state| state.code() == NOT_OWNED)
}
