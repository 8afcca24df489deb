use super::*;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::state::CommitId;

const HISTORY: &str = "1\t0/90\tno recovery target specified\n\n# a word\n2\t0/200\tbefore 2026-11-27\n";

fn checkpoint() -> Checkpoint {
    Checkpoint {
        system_id: "7".to_owned(),
        timeline: 2,
        slot: "s".to_owned(),
        phase: Phase::Streaming,
        acknowledged: Lsn(0x150),
        sent_lsn: Lsn(0x180),
        chain_name: ChainName::read("s/1"),
        chain: Lsn(0x140),
        last: CommitId { commit_lsn: Lsn(0x140), committed_at: 5 },
        vouched: Lsn(0x130),
        synchronous: false,
        routes: "r".to_owned(),
    }
}

fn cluster() -> Cluster {
    Cluster { system_id: "7".to_owned(), timeline: 3, flush: Lsn(0x300) }
}

fn slot() -> Slot {
    Slot {
        plugin: "pgoutput".to_owned(),
        database: "db".to_owned(),
        wal_status: "reserved".to_owned(),
        confirmed: Some(Lsn(0x150)),
        active_pid: None,
    }
}

/// Judges after one change of what fits.
fn changed(
    change: impl FnOnce(&mut Option<Checkpoint>, &mut Cluster, &mut Option<Slot>, &mut Lsn),
) -> Result<Continuation, Obstacle> {
    let (mut checkpoint, mut cluster, mut slot, mut newest) =
        (Some(checkpoint()), cluster(), Some(slot()), Lsn(0x170));
    change(&mut checkpoint, &mut cluster, &mut slot, &mut newest);
    let history = branches(HISTORY);
    judge(&Evidence { newest, ..evidence((checkpoint.as_ref(), &cluster, slot.as_ref()), &history) })
}

/// Nothing is on Kafka.
fn evidence<'a>(
    (checkpoint, cluster, slot): (Option<&'a Checkpoint>, &'a Cluster, Option<&'a Slot>),
    history: &'a [Branch],
) -> Evidence<'a> {
    let (database, routes, newest) = ("db", "r", Lsn::ZERO);
    Evidence {
        checkpoint,
        cluster,
        standby: false,
        database,
        routes,
        unfinished: None,
        branches: history,
        slot,
        newest,
    }
}

fn obstacle(
    change: impl FnOnce(&mut Option<Checkpoint>, &mut Cluster, &mut Option<Slot>, &mut Lsn),
) -> Obstacle {
    changed(change).expect_err("an obstacle")
}

#[test]
fn a_history_file_names_the_branches() {
    let expected = [Branch { ended: 1, at: Lsn(0x90) }, Branch { ended: 2, at: Lsn(0x200) }];
    assert_eq!(branches(HISTORY), expected);
    assert_eq!(branches("nothing of the kind\n"), []);
}

#[test]
fn a_standby_that_has_all_emitted_transactions_continues_the_same_chain() {
    let continuation = changed(|_, _, _, _| {}).expect("it fits");
    assert_eq!(continuation.branch, Branch { ended: 2, at: Lsn(0x200) });
    assert_eq!(continuation.checkpoint, Checkpoint { timeline: 3, ..checkpoint() });
    // Kafka has more than is saved, and the standby has it too.
    let continuation = changed(|_, _, _, newest| *newest = Lsn(0x1F0)).expect("it fits");
    assert_eq!(continuation.checkpoint.sent_lsn, Lsn(0x1F0));
    // Nothing on Kafka names a commit: there is only the checkpoint.
    assert!(changed(|_, _, _, newest| *newest = Lsn::ZERO).is_ok());
    // Over two promotions, if everything was emitted before the first.
    let sent_before = |checkpoint: &mut Option<Checkpoint>| {
        let checkpoint = checkpoint.as_mut().expect("checkpoint");
        (checkpoint.timeline, checkpoint.sent_lsn, checkpoint.acknowledged) = (1, Lsn(0x90), Lsn(0x80));
    };
    let continuation = changed(|checkpoint, _, slot, newest| {
        sent_before(checkpoint);
        slot.as_mut().expect("slot").confirmed = Some(Lsn(0x80));
        *newest = Lsn(0x88);
    });
    assert_eq!(continuation.expect("it fits").branch, Branch { ended: 1, at: Lsn(0x90) });
}

/// Prevents false events: nobody takes an emitted one back.
#[test]
fn emitted_transactions_that_the_standby_does_not_have_are_an_obstacle() {
    let branch = Branch { ended: 2, at: Lsn(0x200) };
    let by_checkpoint =
        obstacle(|checkpoint, _, _, _| checkpoint.as_mut().expect("checkpoint").sent_lsn = Lsn(0x201));
    assert_eq!(by_checkpoint, Obstacle::Ahead { sent: Lsn(0x201), branch });
    let by_kafka = obstacle(|_, _, _, newest| *newest = Lsn(0x200));
    assert_eq!(by_kafka, Obstacle::Ahead { sent: Lsn(0x200), branch });
    let acknowledged =
        obstacle(|checkpoint, _, _, _| checkpoint.as_mut().expect("checkpoint").acknowledged = Lsn(0x208));
    assert_eq!(acknowledged, Obstacle::Ahead { sent: Lsn(0x208), branch });
}

/// The primary's WAL behind the last transaction was acknowledged, and no standby had it: there was no transaction in it.
#[test]
fn where_standbys_were_waited_for_only_a_transaction_behind_the_branch_is_an_obstacle() {
    let kept = |change: fn(&mut Checkpoint, &mut Slot)| {
        changed(|checkpoint, _, slot, _| {
            let (checkpoint, slot) = (checkpoint.as_mut().expect("checkpoint"), slot.as_mut().expect("slot"));
            (checkpoint.synchronous, checkpoint.acknowledged, checkpoint.vouched) =
                (true, Lsn(0x280), Lsn(0x270));
            change(checkpoint, slot);
        })
    };
    let branch = Branch { ended: 2, at: Lsn(0x200) };
    let (acknowledged, vouched) = (branch.at, branch.at);
    // Of the new timeline nothing is known yet, so the next promotion is not followed before standbys have it.
    let expected = Checkpoint { timeline: 3, acknowledged, vouched, synchronous: false, ..checkpoint() };
    assert_eq!(kept(|_, _| {}), Ok(Continuation { checkpoint: expected, branch }));
    let ahead = Obstacle::Ahead { sent: Lsn(0x201), branch };
    assert_eq!(kept(|checkpoint, _| checkpoint.sent_lsn = Lsn(0x201)), Err(ahead));
    let ahead = Obstacle::SlotAhead { confirmed: Lsn(0x201), acknowledged };
    assert_eq!(kept(|_, slot| slot.confirmed = Some(Lsn(0x201))), Err(ahead));
}

/// Prevents a loss: rows that were committed before the promotion and not emitted.
#[test]
fn a_slot_that_does_not_send_all_that_is_missing_is_an_obstacle() {
    assert_eq!(obstacle(|_, _, slot, _| *slot = None), Obstacle::SlotMissing);
    let of = |change: fn(&mut Slot)| obstacle(|_, _, slot, _| change(slot.as_mut().expect("slot")));
    assert_eq!(of(|slot| slot.wal_status = "lost".to_owned()), Obstacle::SlotLost);
    assert_eq!(of(|slot| slot.confirmed = None), Obstacle::SlotLost);
    assert_eq!(of(|slot| slot.active_pid = Some(9)), Obstacle::SlotInUse(9));
    assert!(matches!(of(|slot| slot.plugin = "wal2json".to_owned()), Obstacle::SlotForeign(_)));
    assert!(matches!(of(|slot| slot.database = "other".to_owned()), Obstacle::SlotForeign(_)));
    let ahead = Obstacle::SlotAhead { confirmed: Lsn(0x151), acknowledged: Lsn(0x150) };
    assert_eq!(of(|slot| slot.confirmed = Some(Lsn(0x151))), ahead);
}

#[test]
fn a_server_that_is_no_promotion_of_the_emitted_cluster_is_an_obstacle() {
    assert_eq!(obstacle(|checkpoint, _, _, _| *checkpoint = None), Obstacle::NothingEmitted);
    let phase =
        |phase| obstacle(|checkpoint, _, _, _| checkpoint.as_mut().expect("checkpoint").phase = phase);
    assert_eq!(phase(Phase::Creating), Obstacle::NothingEmitted);
    assert_eq!(phase(Phase::Resnapshot), Obstacle::ResnapshotUnfinished);
    let unnamed = obstacle(|checkpoint, _, _, _| {
        checkpoint.as_mut().expect("checkpoint").chain_name = ChainName::default();
    });
    assert_eq!(unnamed, Obstacle::UnnamedChain);
    let other = obstacle(|_, cluster, _, _| cluster.system_id = "8".to_owned());
    assert!(matches!(other, Obstacle::OtherCluster { .. }));
    assert_eq!(obstacle(|_, cluster, _, _| cluster.timeline = 2), Obstacle::SameTimeline(2));
    let stranger = obstacle(|checkpoint, _, _, _| checkpoint.as_mut().expect("checkpoint").timeline = 5);
    assert_eq!(stranger, Obstacle::Stranger { expected: 5, found: 3 });
}

/// The last of a chain of standbys was promoted before it had all of the first one's timeline.
#[test]
fn the_earliest_of_several_branches_counts() {
    let history = branches("1\t0/200\tfirst\n2\t0/160\tsecond\n");
    let (checkpoint, cluster, slot) = (Checkpoint { timeline: 1, ..checkpoint() }, cluster(), slot());
    let evidence = evidence((Some(&checkpoint), &cluster, Some(&slot)), &history);
    let branch = Branch { ended: 1, at: Lsn(0x160) };
    assert_eq!(judge(&evidence), Err(Obstacle::Ahead { sent: Lsn(0x180), branch }));
    assert_eq!(judge(&Evidence { standby: true, ..evidence }), Err(Obstacle::Standby));
    let history = branches("1\t0/200\tfirst\n2\t0/180\tsecond\n");
    let evidence = Evidence { branches: &history, ..evidence };
    assert!(judge(&evidence).is_ok());
    assert_eq!(judge(&Evidence { routes: "other", ..evidence }), Err(Obstacle::OtherRoutes));
    let unfinished = Evidence { unfinished: Some("public.items"), ..evidence };
    assert_eq!(judge(&unfinished), Err(Obstacle::Unfinished("public.items".to_owned())));
}
