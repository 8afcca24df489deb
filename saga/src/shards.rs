//! Shards: the databases of one service, each of which owns the users of some buckets.
//!
//! * A user is in one of 1024 buckets ([`bucket`]). No statement of a service joins two users, so a bucket is what moves.
//! * Who owns a bucket is said by the shards themselves: each has all buckets in its table `owned_buckets (bucket, epoch, owned,
//!   peer)`. A database is born owning all of them at epoch 1, so one database is the one shard of its service.
//! * The map is the union of these tables: of those that say they own a bucket, the one with the highest epoch does ([`map`]).
//!   Two owners at one epoch are a mistake of an operator, and refused. A shard that is away hides its own buckets only.
//! * Each statement that reads or writes rows of users names the buckets that it means, and their epochs as its process knows
//!   them: `require_ownership (buckets, epochs)`. The database looks into `owned_buckets` in the snapshot of that statement. It
//!   raises SQLSTATE `SB001` unless each of them is owned there at that epoch; a statement never finds fewer rows instead.
//! * A process that is refused reads the map again and repeats the work of those buckets ([`router`]). While nobody owns a
//!   bucket, its requests wait; they are not answered 503.
//! * What waits for a shard waits in a queue of that shard ([`lanes`]), and an event whose shard is away is passed over
//!   ([`consumer`](crate::consumer)).
//! * The configuration lists the shards, with a name for each ([`list`]).
//! * A move of a bucket is proposed by rendezvous hashing ([`placement`]), so a new shard takes its part from all others, and
//!   nothing moves between these.
//!
//! # A move
//!
//! `change_ownership (buckets, known, epochs, owned, peer)` is the only way by which rows of `owned_buckets` change: for each bucket
//! a compare-and-set on the epoch that is known, to a higher one; all of them or none (SQLSTATE `SB002`). An epoch is one more than
//! the highest that the bucket has on any shard. A move from source S to target T, for each bucket:
//!
//! | step | on | change | |
//! |---|---|---|---|
//! | fence | S | (s, owned) → (n, not owned, peer T) | nobody owns the bucket |
//! | wait | S | | every transaction that ran at the commit of the fence has ended, or is terminated: only these can have a statement whose snapshot is older than the fence |
//! | position | S | | the WAL position is taken after that. T has flushed what S has written up to it, and S's relay has acknowledged it |
//! | grant | T | (t, not owned) → (n + 1, owned, peer S) | from here on there is only forward |
//!
//! A rollback, before the grant: on T (t, not owned) → (n + 1, not owned), after which a late grant finds another epoch than t and
//! fails; then on S (n, not owned) → (n + 2, owned).

pub mod bucket;
pub mod databases;
pub mod lanes;
pub mod list;
pub mod map;
pub mod ownership;
pub mod placement;
pub mod router;
pub mod settings;

pub use databases::Databases;
pub use lanes::Lanes;
pub use ownership::{Ownership, Unowned, is_refused};
pub use router::{Part, Parts, Router};
pub use settings::Settings;
