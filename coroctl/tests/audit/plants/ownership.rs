//! Of buckets, where services have several databases.

use coroctl::audit::read::relay::{Checkpoint, Cluster, Slot};
use coroctl::owned_rows::Ownership;
use saga::shards::bucket::Bucket;
use saga::shards::map::BucketRow;

use super::{Harness, NOTHING, Plant};

/// The fixture's balance database beside another one, with epoch and owner of the last bucket on each.
fn balance(harness: &mut Harness, [one, two]: [(i64, bool); 2]) {
    let claims = |shard: &str, last: (i64, bool), others: bool| {
        let row = |bucket: Bucket| {
            let (epoch, owned) = if bucket.number() == 1023 { last } else { (1, others) };
            BucketRow { bucket, epoch, owned }
        };
        (shard.to_owned(), Bucket::all().map(row).collect())
    };
    harness
        .ownership
        .insert("balance", Ownership::new(&[claims("one", one, true), claims("two", two, false)]));
}

/// The sources of shards are called as the operator likes, and are known by their server.
fn sources(harness: &mut Harness, two: Slot) {
    let slots = vec![Slot { name: "first".to_owned(), confirmed: 1_000, lost: false }, two];
    let cluster = |shard: &str| Cluster {
        shard: Some(shard.to_owned()),
        system_id: "2".to_owned(),
        slots: slots.clone(),
    };
    harness.clusters.insert("balance", vec![cluster("one"), cluster("two")]);
    let checkpoint = |source: &str, slot: &str| Checkpoint {
        source: source.to_owned(),
        slot: slot.to_owned(),
        system_id: "2".to_owned(),
        creating: false,
        acknowledged: 1_000,
    };
    harness.checkpoints[1] = checkpoint("balance", "first");
    harness.checkpoints.push(checkpoint("second-balance", "second"));
}

pub const OWNERSHIP: &[Plant] = &[
    Plant {
        what: "a bucket that moved",
        complain: &[],
        plant: |harness| {
            balance(harness, [(2, false), (3, true)]);
            sources(harness, Slot { name: "second".to_owned(), confirmed: 999, lost: false });
        },
        ..NOTHING
    },
    Plant {
        what: "a bucket that nobody owns",
        complain: &["O1"],
        plant: |harness| balance(harness, [(2, false), (1, false)]),
        ..NOTHING
    },
    Plant {
        what: "a bucket that two own at one epoch",
        complain: &["O1"],
        plant: |harness| balance(harness, [(2, true), (2, true)]),
        ..NOTHING
    },
    Plant {
        what: "a shard's slot ahead of what is acknowledged",
        complain: &["T4"],
        plant: |harness| sources(harness, Slot { name: "second".to_owned(), confirmed: 1_001, lost: false }),
        ..NOTHING
    },
    Plant {
        what: "a shard's slot that is gone",
        complain: &["T4"],
        plant: |harness| sources(harness, Slot { name: "another".to_owned(), confirmed: 1, lost: false }),
        ..NOTHING
    },
];
