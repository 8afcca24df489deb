//! The model check of moves: a bucket goes from one shard to another while services write to it.
//!
//! The decisions are the real ones: `coroctl::shard::moves::{next, Step}` say which step is next, which epochs it compares and
//! sets, which record it locks, and what it permits. Around them, as small as they can be:
//!
//! * [`state`]: two shards, each a primary with a synchronous standby and a relay; one payment, in one bucket;
//! * [`shards`]: transactions of services, whose effect comes after their snapshot; commits, which are visible once the standby has
//!   them; promotions, which lose the others; relays; the copy by logical replication;
//! * [`mover`]: what it observes, decides and sends. It may die at any time, and what it has sent may arrive at any later time;
//! * [`machine`]: all of it as one state machine; [`properties`]: what must hold, and that every move ends;
//! * [`checks`]: the exhaustive checks, and the mistakes that they must find.
//!
//! A router may know anything that was ever true: transactions come to any shard with any epoch.
//!
//! Time is not modelled: a limit is over whenever that does most harm.
//!
//! Not modelled: several buckets (all of a move change in one transaction), a third shard (an open record keeps a bucket out of
//! other moves), restored databases (they are closed until an operator opens them), repeated emissions (`re_emitted`), and a primary
//! that shows commits which its standby does not have (the mover's reads are followed by a synchronous commit).

mod checks;
mod machine;
mod mover;
mod properties;
mod shards;
mod state;
