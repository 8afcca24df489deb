//! How far this process has emitted, acknowledged or not: pure.
//!
//! * A position means something within one timeline of one chain alone. A resnapshot, a restore or a promotion begins another, and
//!   what the process emitted before says nothing of it.

use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::state::Checkpoint;
use crate::postgres::lsn::Lsn;

#[derive(Debug, Default)]
pub(super) struct Emitted {
    chain_name: ChainName,
    timeline: u32,
    pub sent_lsn: Lsn,
}

impl Emitted {
    /// Before the first commit of a session of this checkpoint.
    pub fn before(checkpoint: &Checkpoint) -> Emitted {
        let Checkpoint { chain_name, timeline, .. } = checkpoint;
        Emitted { chain_name: chain_name.clone(), timeline: *timeline, sent_lsn: Lsn::ZERO }
    }

    /// The last commit that was emitted from the chain and timeline of the checkpoint; 0/0 if none was.
    pub fn until(&self, checkpoint: &Checkpoint) -> Lsn {
        let is_same = self.chain_name == checkpoint.chain_name && self.timeline == checkpoint.timeline;
        if is_same { self.sent_lsn } else { Lsn::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::state::{Cluster, NewSlot, Phase};
    use crate::postgres::lsn::PgTime;

    fn checkpoint(chain: i64, timeline: u32) -> Checkpoint {
        let cluster = Cluster { system_id: "1".to_owned(), timeline, flush: Lsn(10) };
        let chain_name = ChainName::begin("shop", PgTime(chain));
        let slot = NewSlot { name: "slot", chain_name: &chain_name, routes: "" };
        Checkpoint::of_new_slot(&cluster, &slot, Phase::Streaming, Lsn(10))
    }

    /// A position of the old server beyond the new one's would say that the new one lost what was emitted.
    #[test]
    fn a_position_of_another_chain_or_timeline_says_nothing() {
        let mut emitted = Emitted::before(&checkpoint(1, 1));
        assert_eq!(emitted.until(&checkpoint(1, 1)), Lsn::ZERO, "nothing was emitted yet");
        emitted.sent_lsn = Lsn(900);
        assert_eq!(emitted.until(&checkpoint(1, 1)), Lsn(900));
        assert_eq!(emitted.until(&checkpoint(1, 2)), Lsn::ZERO, "a standby was promoted");
        assert_eq!(emitted.until(&checkpoint(2_000_000_000, 1)), Lsn::ZERO, "a resnapshot began a chain");
        assert_eq!(Emitted::default().until(&checkpoint(1, 1)), Lsn::ZERO);
    }
}
