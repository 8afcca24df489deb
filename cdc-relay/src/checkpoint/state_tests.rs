use super::*;

fn checkpoint() -> Checkpoint {
    Checkpoint {
        system_id: "7".to_owned(),
        timeline: 1,
        slot: "s".to_owned(),
        phase: Phase::Streaming,
        acknowledged: Lsn(100),
        sent_lsn: Lsn(120),
        last: CommitId::default(),
        vouched: Lsn(80),
        synchronous: false,
        chain_name: ChainName::read("s/1"),
        chain: Lsn(90),
        routes: String::new(),
    }
}

/// Prevents a halt: a slot that seems to be ahead of the checkpoint, when the checkpoint was put back.
#[test]
fn a_relay_that_writes_after_its_successor_does_not_put_the_checkpoint_back() {
    let (newer, older) = (checkpoint(), Checkpoint { acknowledged: Lsn(50), ..checkpoint() });
    assert_eq!(load(Some(older.clone()), Some(newer.clone())), Some(newer.clone()));
    assert_eq!(load(Some(newer.clone()), Some(older.clone())), Some(newer.clone()));
    // Before a promotion, with whatever the old primary still had.
    let (promoted, further) =
        (Checkpoint { timeline: 2, ..checkpoint() }, Checkpoint { acknowledged: Lsn(150), ..checkpoint() });
    assert_eq!(load(Some(promoted.clone()), Some(further)), Some(promoted));
    // What an operator or another start wrote counts.
    assert_eq!(load(Some(newer.clone()), None), None);
    assert_eq!(load(None, Some(older.clone())), Some(older.clone()));
    for other in [
        Checkpoint { phase: Phase::Creating, ..older.clone() },
        Checkpoint { phase: Phase::Resnapshot, ..older.clone() },
        Checkpoint { system_id: "8".to_owned(), ..older.clone() },
        Checkpoint { timeline: 2, ..older.clone() },
        Checkpoint { slot: "t".to_owned(), ..older },
    ] {
        assert_eq!(load(Some(newer.clone()), Some(other.clone())), Some(other));
    }
}

fn cluster() -> Cluster {
    Cluster { system_id: "7".to_owned(), timeline: 1, flush: Lsn(200) }
}

fn slot(confirmed: u64) -> Slot {
    Slot {
        plugin: "pgoutput".to_owned(),
        database: "d".to_owned(),
        wal_status: "reserved".to_owned(),
        confirmed: Some(Lsn(confirmed)),
        active_pid: None,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "each call makes its own")]
fn decide(checkpoint: Option<Checkpoint>, slot: Option<Slot>) -> Result<Start, Refusal> {
    admit(checkpoint.as_ref(), &cluster(), "s", slot.as_ref(), "d")
}

#[test]
fn a_first_start_makes_the_slot() {
    assert_eq!(decide(None, None), Ok(Start::Create));
}

#[test]
fn a_start_that_crashed_before_or_after_making_the_slot_goes_on() {
    let creating =
        Checkpoint { phase: Phase::Creating, acknowledged: Lsn::ZERO, sent_lsn: Lsn::ZERO, ..checkpoint() };
    assert_eq!(decide(Some(creating.clone()), None), Ok(Start::Create));
    assert_eq!(decide(Some(creating), Some(slot(150))), Ok(Start::Adopt));
}

#[test]
fn a_slot_at_or_behind_what_is_acknowledged_is_resumed() {
    let resume = Ok(Start::Resume { acknowledged: Lsn(100), chain: Lsn(90) });
    assert_eq!(decide(Some(checkpoint()), Some(slot(100))), resume);
    assert_eq!(decide(Some(checkpoint()), Some(slot(50))), resume);
}

#[test]
fn a_slot_without_checkpoint_is_refused() {
    assert_eq!(decide(None, Some(slot(100))), Err(Refusal::CheckpointMissing { slot: "s".to_owned() }));
}

#[test]
fn a_slot_that_is_gone_is_never_made_again() {
    let refusal = Refusal::SlotMissing { slot: "s".to_owned(), acknowledged: Lsn(100) };
    assert_eq!(decide(Some(checkpoint()), None), Err(refusal));
}

#[test]
fn a_slot_that_somebody_else_advanced_is_refused() {
    let refusal = Refusal::SlotAhead { slot: "s".to_owned(), confirmed: Lsn(101), acknowledged: Lsn(100) };
    assert_eq!(decide(Some(checkpoint()), Some(slot(101))), Err(refusal));
}

#[test]
fn a_lost_slot_is_refused() {
    let lost = Slot { wal_status: "lost".to_owned(), ..slot(100) };
    assert_eq!(decide(Some(checkpoint()), Some(lost)), Err(Refusal::SlotLost { slot: "s".to_owned() }));
}

#[test]
fn a_slot_of_another_plugin_or_database_is_refused() {
    let other = Slot { plugin: "wal2json".to_owned(), ..slot(100) };
    assert!(matches!(decide(Some(checkpoint()), Some(other)), Err(Refusal::SlotForeign { .. })));
    let other = Slot { database: "e".to_owned(), ..slot(100) };
    assert!(matches!(decide(Some(checkpoint()), Some(other)), Err(Refusal::SlotForeign { .. })));
}

#[test]
fn another_cluster_or_timeline_is_refused() {
    let moved = Checkpoint { system_id: "8".to_owned(), ..checkpoint() };
    assert!(matches!(decide(Some(moved), Some(slot(100))), Err(Refusal::OtherCluster { .. })));
    let promoted = Checkpoint { timeline: 2, ..checkpoint() };
    assert!(matches!(decide(Some(promoted), Some(slot(100))), Err(Refusal::OtherTimeline { .. })));
}

#[test]
fn a_server_that_ends_before_the_last_emitted_position_is_refused() {
    let ahead = Checkpoint { sent_lsn: Lsn(201), ..checkpoint() };
    let refusal = Refusal::ServerBehind { flush: Lsn(200), sent_lsn: Lsn(201) };
    assert_eq!(decide(Some(ahead), Some(slot(100))), Err(refusal));
}

#[test]
fn an_unfinished_resnapshot_is_refused() {
    let unfinished = Checkpoint { phase: Phase::Resnapshot, ..checkpoint() };
    assert!(matches!(decide(Some(unfinished), Some(slot(100))), Err(Refusal::ResnapshotUnfinished { .. })));
}

#[test]
fn every_refusal_says_what_to_do() {
    let slot = || "s".to_owned();
    let all = [
        Refusal::CheckpointMissing { slot: slot() },
        Refusal::SlotMissing { slot: slot(), acknowledged: Lsn(1) },
        Refusal::SlotLost { slot: slot() },
        Refusal::SlotAhead { slot: slot(), confirmed: Lsn(2), acknowledged: Lsn(1) },
        Refusal::OtherCluster { expected: slot(), found: slot() },
        Refusal::OtherTimeline { expected: 1, found: 2 },
        Refusal::NotContinued { expected: 1, found: 2, why: slot() },
        Refusal::ServerBehind { flush: Lsn(1), sent_lsn: Lsn(2) },
        Refusal::ResnapshotUnfinished { slot: slot() },
    ];
    for refusal in all {
        assert!(refusal.to_string().contains("resnapshot"), "{refusal}");
    }
}

#[test]
fn the_checkpoint_survives_its_record() {
    let text = serde_json::to_string(&checkpoint()).unwrap();
    assert!(text.contains(r#""acknowledged":"0/64""#), "{text}");
    assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), checkpoint());
}

#[test]
fn a_checkpoint_of_an_earlier_release_vouches_for_what_it_acknowledged() {
    assert_eq!(checkpoint().complete_until(), Lsn(80));
    let mut record = serde_json::to_value(checkpoint()).expect("JSON");
    assert_eq!(record["vouched"], "0/50");
    assert_eq!(serde_json::from_value::<Checkpoint>(record.clone()).expect("a checkpoint"), checkpoint());
    record.as_object_mut().expect("an object").remove("vouched");
    let earlier: Checkpoint = serde_json::from_value(record).expect("a checkpoint of an earlier release");
    assert_eq!(earlier.complete_until(), Lsn(100));
}

/// A promotion is not followed on the word of a relay that knew no standbys.
#[test]
fn a_checkpoint_of_an_earlier_release_does_not_say_that_standbys_were_waited_for() {
    let kept = Checkpoint { synchronous: true, ..checkpoint() };
    let mut record = serde_json::to_value(&kept).expect("JSON");
    assert_eq!(serde_json::from_value::<Checkpoint>(record.clone()).expect("a checkpoint"), kept);
    record.as_object_mut().expect("an object").remove("synchronous");
    let earlier: Checkpoint = serde_json::from_value(record).expect("a checkpoint of an earlier release");
    assert!(!earlier.synchronous);
}
