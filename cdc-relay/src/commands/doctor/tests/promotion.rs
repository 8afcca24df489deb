//! What is said of a server that was promoted, and of one that others were promoted over.

use super::*;

/// Whoever reads that everything is lost before `run` goes on by itself makes a resnapshot for nothing.
#[test]
fn a_promotion_that_the_relay_may_follow_by_itself_is_no_loss() {
    let judged = |synchronous, timeline| {
        let facts = Facts { timeline, ..fine() };
        let saved = Checkpoint { synchronous, ..checkpoint() };
        let findings = slot::slot(&facts, "shop", SavedCheckpoint::Saved(&saved));
        findings.iter().find(|finding| finding.check == "slot.checkpoint").map(|finding| finding.severity)
    };
    assert_eq!(judged(true, 1), Some(Severity::Ok));
    assert_eq!(judged(true, 2), Some(Severity::Warning));
    assert_eq!(judged(false, 2), Some(Severity::WouldLoseData), "nobody knows what the standby lacks");
    assert_eq!(judged(true, 0), Some(Severity::WouldLoseData), "it is a former primary");
}
