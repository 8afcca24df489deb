use super::*;

const ATTEMPT: Attempt = Attempt { source_epoch: 5, target_epoch: 2 };

const SOURCES: [AtSource; 3] = [AtSource::Owns, AtSource::Fenced, AtSource::Other];
const TARGETS: [AtTarget; 4] = [AtTarget::Waits, AtTarget::Granted, AtTarget::Barred, AtTarget::Other];
const TWO_OWNERS: Step = Step::Refuse(Contradiction::TwoOwners);
const FOREIGN: Step = Step::Refuse(Contradiction::ForeignEpoch);

/// A move whose rows follow, with both records, before its fence.
fn following() -> Observed {
    Observed {
        source: AtSource::Owns,
        target: AtTarget::Waits,
        source_record: Record::Open,
        target_record: Record::Open,
        has_slot: true,
        subscription: Subscription::Follows,
        source_has_rows: true,
        target_has_rows: true,
        drain: Drain::Unknown,
        fenced_for: Duration::ZERO,
        abort_requested: false,
        grant_recorded: false,
        same_incarnations: true,
    }
}

fn step_at(source: AtSource, target: AtTarget, goes_back: bool) -> Step {
    next(&Observed { source, target, abort_requested: goes_back, ..following() })
}

#[test]
fn every_pair_of_rows_has_a_step() {
    // In the order of TARGETS: waits, granted, barred, other.
    let onward = [
        [Step::Fence, TWO_OWNERS, Step::Fence, FOREIGN],
        [Step::ListTransactions, Step::RecordGrant, Step::TakeBack, FOREIGN],
        [FOREIGN, FOREIGN, FOREIGN, FOREIGN],
    ];
    let back = [
        [Step::Unsubscribe, TWO_OWNERS, Step::Fence, FOREIGN],
        // After a grant there is only forward.
        [Step::Bar, Step::RecordGrant, Step::TakeBack, FOREIGN],
        [FOREIGN, FOREIGN, FOREIGN, FOREIGN],
    ];
    for (row, source) in SOURCES.into_iter().enumerate() {
        for (column, target) in TARGETS.into_iter().enumerate() {
            assert_eq!(step_at(source, target, false), onward[row][column], "{source:?}, {target:?}");
            assert_eq!(step_at(source, target, true), back[row][column], "{source:?}, {target:?}, back");
        }
    }
}

/// Its record was closed by `adopt`, not by a step.
#[test]
fn a_source_that_was_restored_to_before_the_grant_leaves_a_target_to_be_ended() {
    let adopted = Observed {
        source: AtSource::Other,
        target: AtTarget::Granted,
        source_record: Record::Closed(Outcome::Moved),
        ..following()
    };
    assert_eq!(next(&adopted), Step::Unsubscribe);
    let unsubscribed = Observed { subscription: Subscription::Absent, ..adopted };
    assert_eq!(next(&unsubscribed), Step::Close(Side::Target, Outcome::Moved));
}

#[test]
fn a_changed_incarnation_goes_back_as_an_abort_does() {
    for source in SOURCES {
        for target in TARGETS {
            let changed = Observed { source, target, same_incarnations: false, ..following() };
            assert_eq!(next(&changed), step_at(source, target, true), "{source:?}, {target:?}");
        }
    }
}

#[test]
fn copying() {
    let new = Observed {
        source_record: Record::Absent,
        target_record: Record::Absent,
        has_slot: false,
        subscription: Subscription::Absent,
        ..following()
    };
    let announced = Observed { source_record: Record::Open, ..new };
    let ready = Observed { target_record: Record::Open, target_has_rows: false, ..announced };
    let with_slot = Observed { has_slot: true, ..ready };
    for (observed, step) in [
        (new, Step::Announce(Side::Source)),
        (announced, Step::Announce(Side::Target)),
        (Observed { target_has_rows: true, ..ready }, Step::Empty),
        (Observed { target_has_rows: true, ..with_slot }, Step::Empty),
        (ready, Step::MakeSlot),
        (with_slot, Step::Subscribe),
        (Observed { subscription: Subscription::Copying, ..with_slot }, Step::AwaitCopy),
        (Observed { subscription: Subscription::Copying, ..ready }, Step::Unsubscribe),
        (Observed { subscription: Subscription::Follows, ..ready }, Step::Unsubscribe),
        (following(), Step::Fence),
    ] {
        assert_eq!(next(&observed), step, "{observed:?}");
    }
}

#[test]
fn draining() {
    let at =
        |target_has_flushed, relay_has_acknowledged| Drain::At { target_has_flushed, relay_has_acknowledged };
    let just_before = |limit: Duration| limit - Duration::from_millis(1);
    for (drain, fenced_for, step) in [
        (Drain::Unknown, Duration::ZERO, Step::ListTransactions),
        (Drain::Running, just_before(TRANSACTION_MAX), Step::AwaitTransactions),
        (Drain::Running, TRANSACTION_MAX, Step::EndTransactions),
        (Drain::Ended, TRANSACTION_MAX, Step::TakeLsn),
        (at(false, false), TRANSACTION_MAX, Step::AwaitTarget),
        (at(false, true), TRANSACTION_MAX, Step::AwaitTarget),
        (at(true, false), TRANSACTION_MAX, Step::AwaitRelay),
        (at(true, true), just_before(FENCE_MAX), Step::Grant),
        (at(true, true), FENCE_MAX, Step::Bar),
        (Drain::Unknown, FENCE_MAX, Step::Bar),
    ] {
        let observed = Observed { source: AtSource::Fenced, drain, fenced_for, ..following() };
        assert_eq!(next(&observed), step, "{drain:?} after {fenced_for:?}");
    }
}

/// Whatever is still to be waited for.
#[test]
fn a_fence_whose_target_cannot_be_granted_is_lifted_at_once() {
    let drain = Drain::At { target_has_flushed: true, relay_has_acknowledged: true };
    let fenced = Observed { source: AtSource::Fenced, drain, ..following() };
    assert_eq!(next(&fenced), Step::Grant);
    let unsubscribed = Observed { subscription: Subscription::Absent, ..fenced };
    assert_eq!(next(&unsubscribed), Step::Bar);
    for abort_requested in [false, true] {
        let unrecorded = Observed { target_record: Record::Absent, abort_requested, ..unsubscribed };
        assert_eq!(next(&unrecorded), Step::Announce(Side::Target));
    }
}

#[test]
fn the_owner_of_the_buckets_closes_last() {
    let moved = Observed {
        source: AtSource::Fenced,
        target: AtTarget::Granted,
        has_slot: false,
        subscription: Subscription::Absent,
        source_has_rows: false,
        grant_recorded: true,
        ..following()
    };
    let back = Observed {
        has_slot: false,
        subscription: Subscription::Absent,
        target_has_rows: false,
        abort_requested: true,
        ..following()
    };
    let closed = |observed: Observed, side, outcome| match side {
        Side::Source => Observed { source_record: Record::Closed(outcome), ..observed },
        Side::Target => Observed { target_record: Record::Closed(outcome), ..observed },
    };
    let (source, target) = (Side::Source, Side::Target);
    let (is_moved, is_back) = (Outcome::Moved, Outcome::RolledBack);
    for (observed, step) in [
        (Observed { grant_recorded: false, has_slot: true, ..moved }, Step::RecordGrant),
        (Observed { subscription: Subscription::Follows, ..moved }, Step::Unsubscribe),
        (Observed { has_slot: true, ..moved }, Step::DropSlot),
        (Observed { source_has_rows: true, ..moved }, Step::Remove),
        (moved, Step::Close(source, is_moved)),
        (closed(moved, source, is_moved), Step::Close(target, is_moved)),
        (closed(closed(moved, source, is_moved), target, is_moved), Step::Done(is_moved)),
        (Observed { has_slot: true, ..back }, Step::DropSlot),
        (Observed { target_has_rows: true, ..back }, Step::Empty),
        (back, Step::Close(target, is_back)),
        (closed(back, target, is_back), Step::Close(source, is_back)),
        (closed(closed(back, target, is_back), source, is_back), Step::Done(is_back)),
        // The rows at a target that was never announced are not this move's.
        (
            Observed { target_record: Record::Absent, target_has_rows: true, ..back },
            Step::Close(source, is_back),
        ),
        // A fence of a killed mover came late.
        (Observed { source: AtSource::Fenced, ..closed(back, target, is_back) }, Step::TakeBack),
    ] {
        assert_eq!(next(&observed), step, "{observed:?}");
    }
}

/// It was restored to a time before the grant. The source may have removed rows since.
#[test]
fn a_target_that_has_lost_a_recorded_grant_needs_a_person() {
    let refused = Step::Refuse(Contradiction::LostGrant);
    let recorded = Observed { source: AtSource::Fenced, grant_recorded: true, ..following() };
    let moved = Record::Closed(Outcome::Moved);
    for target in [AtTarget::Waits, AtTarget::Barred, AtTarget::Other] {
        for (source_record, target_record) in [
            (Record::Open, Record::Open),
            (Record::Open, Record::Absent),
            (moved, Record::Open),
            (moved, Record::Absent),
        ] {
            for abort_requested in [false, true] {
                let lost = Observed { target, source_record, target_record, abort_requested, ..recorded };
                assert_eq!(next(&lost), refused, "{lost:?}");
            }
        }
    }
    assert_eq!(next(&Observed { target: AtTarget::Granted, ..recorded }), Step::Unsubscribe);
}

/// A move that another one followed has nothing to do, whatever the rows are by now.
#[test]
fn a_closed_move_is_done() {
    for source in SOURCES {
        for target in TARGETS {
            let outcome = Outcome::Moved;
            let (source_record, target_record) = (Record::Closed(outcome), Record::Closed(outcome));
            let closed = Observed { source, target, source_record, target_record, ..following() };
            assert_eq!(next(&closed), Step::Done(outcome));
        }
    }
}

#[test]
fn changes_and_what_they_make_agree() {
    let source = |row| AtSource::of(row, ATTEMPT);
    let target = |row| AtTarget::of(row, ATTEMPT);
    let change = |step: Step| step.compare_and_set(ATTEMPT).unwrap();
    assert_eq!(source(Ownership { epoch: 5, owned: true }), AtSource::Owns);
    assert_eq!(target(Ownership { epoch: 2, owned: false }), AtTarget::Waits);
    assert_eq!(change(Step::Fence).known, 5);
    assert_eq!(source(change(Step::Fence).next), AtSource::Fenced);
    assert_eq!(change(Step::Grant).known, 2);
    assert_eq!(target(change(Step::Grant).next), AtTarget::Granted);
    assert_eq!(target(change(Step::Bar).next), AtTarget::Barred);
    // The next attempt begins with what a rollback leaves.
    let next_attempt = ATTEMPT.after_rollback();
    assert_eq!(AtSource::of(change(Step::TakeBack).next, next_attempt), AtSource::Owns);
    assert_eq!(AtTarget::of(change(Step::Bar).next, next_attempt), AtTarget::Waits);
}

/// Whichever shard is ahead: epochs rise, a grant and a bar exclude each other, and none fits the next attempt.
#[test]
fn a_late_statement_finds_another_epoch() {
    for (source_epoch, target_epoch) in (1..6).flat_map(|source| (1..6).map(move |target| (source, target))) {
        let attempt = Attempt { source_epoch, target_epoch };
        let later = attempt.after_rollback();
        let change = |step: Step, attempt| step.compare_and_set(attempt).unwrap();
        for step in [Step::Fence, Step::Grant, Step::Bar, Step::TakeBack] {
            let made = change(step, attempt);
            assert!(made.next.epoch > made.known, "{step:?} at {attempt:?}");
            let present = match made.side {
                Side::Source => later.source_epoch,
                Side::Target => later.target_epoch,
            };
            assert_ne!(made.known, present, "{step:?} of {attempt:?} fits {later:?}");
        }
        assert_eq!(change(Step::Grant, attempt).known, change(Step::Bar, attempt).known);
        // The owner's epoch is above every other.
        assert!(change(Step::Grant, attempt).next.epoch > attempt.fenced());
        assert!(later.source_epoch > later.target_epoch);
    }
}

#[test]
fn rows_are_deleted_only_where_the_bucket_is_not() {
    for epoch in 1..10 {
        for owned in [true, false] {
            let row = Ownership { epoch, owned };
            assert_eq!(Step::Empty.permits(ATTEMPT, row), epoch == 2 && !owned, "{row:?}");
            assert_eq!(Step::Remove.permits(ATTEMPT, row), epoch == 6 && !owned, "{row:?}");
            assert_eq!(Step::RecordGrant.permits(ATTEMPT, row), epoch == 6 && !owned, "{row:?}");
            let rolled_back = Step::Close(Side::Source, Outcome::RolledBack);
            assert_eq!(rolled_back.permits(ATTEMPT, row), epoch == 5 && owned, "{row:?}");
        }
    }
}

/// Two shards on which each step does what it says, at once.
struct Shards {
    observed: Observed,
    rows: [Ownership; 2],
    attempt: Attempt,
}

impl Shards {
    fn new() -> Self {
        let rows = [Ownership { epoch: 1, owned: true }, Ownership { epoch: 2, owned: false }];
        let attempt = Attempt { source_epoch: 1, target_epoch: 2 };
        let observed = Observed {
            source_record: Record::Absent,
            target_record: Record::Absent,
            has_slot: false,
            subscription: Subscription::Absent,
            ..following()
        };
        Self { observed, rows, attempt }
    }

    fn carry_out(&mut self, step: Step) {
        if let Some(change) = step.compare_and_set(self.attempt) {
            let row = match change.side {
                Side::Source => &mut self.rows[0],
                Side::Target => &mut self.rows[1],
            };
            assert_eq!(row.epoch, change.known, "{step:?}");
            *row = change.next;
        }
        let observed = &mut self.observed;
        match step {
            Step::Announce(Side::Source) => observed.source_record = Record::Open,
            Step::Announce(Side::Target) => observed.target_record = Record::Open,
            Step::Empty => observed.target_has_rows = false,
            Step::MakeSlot => observed.has_slot = true,
            Step::Subscribe => {
                (observed.subscription, observed.target_has_rows) = (Subscription::Copying, true);
            }
            Step::AwaitCopy => observed.subscription = Subscription::Follows,
            Step::ListTransactions => observed.drain = Drain::Running,
            Step::AwaitTransactions | Step::EndTransactions => observed.drain = Drain::Ended,
            Step::TakeLsn => {
                observed.drain = Drain::At { target_has_flushed: false, relay_has_acknowledged: false };
            }
            Step::AwaitTarget => {
                observed.drain = Drain::At { target_has_flushed: true, relay_has_acknowledged: false };
            }
            Step::AwaitRelay => {
                observed.drain = Drain::At { target_has_flushed: true, relay_has_acknowledged: true };
            }
            Step::TakeBack => self.attempt = self.attempt.after_rollback(),
            Step::RecordGrant => observed.grant_recorded = true,
            Step::Unsubscribe => observed.subscription = Subscription::Absent,
            Step::DropSlot => observed.has_slot = false,
            Step::Remove => observed.source_has_rows = false,
            Step::Close(Side::Source, outcome) => observed.source_record = Record::Closed(outcome),
            Step::Close(Side::Target, outcome) => observed.target_record = Record::Closed(outcome),
            Step::Fence | Step::Grant | Step::Bar | Step::Done(_) | Step::Refuse(_) => {}
        }
    }

    /// The end, after at most so many steps, and the steps. Before step `disturbed` something happens.
    fn run(&mut self, disturbed: usize, disturb: impl Fn(&mut Observed)) -> (Outcome, Vec<Step>) {
        let mut steps = Vec::new();
        for at in 0..40 {
            if at == disturbed {
                disturb(&mut self.observed);
            }
            self.observed.source = AtSource::of(self.rows[0], self.attempt);
            self.observed.target = AtTarget::of(self.rows[1], self.attempt);
            let step = next(&self.observed);
            if let Step::Done(outcome) = step {
                return (outcome, steps);
            }
            self.carry_out(step);
            steps.push(step);
        }
        panic!("no end after {steps:?}");
    }
}

#[test]
fn a_move_whose_mover_is_killed_before_any_step_resumes() {
    let (outcome, undisturbed) = Shards::new().run(usize::MAX, |_| {});
    assert_eq!(outcome, Outcome::Moved);
    for killed in 0..undisturbed.len() {
        let (outcome, steps) = Shards::new().run(killed, |observed| observed.drain = Drain::Unknown);
        assert_eq!(outcome, Outcome::Moved, "killed before step {killed}: {steps:?}");
        let grants = steps.iter().filter(|step| **step == Step::Grant).count();
        assert_eq!(grants, 1, "killed before step {killed}: {steps:?}");
    }
}

#[test]
fn an_abort_rolls_back_before_the_grant_and_changes_nothing_after_it() {
    let (_, undisturbed) = Shards::new().run(usize::MAX, |_| {});
    let grant = undisturbed.iter().position(|step| *step == Step::Grant).unwrap();
    for aborted in 0..undisturbed.len() {
        let mut shards = Shards::new();
        let (outcome, steps) = shards.run(aborted, |observed| observed.abort_requested = true);
        let expected = if aborted <= grant { Outcome::RolledBack } else { Outcome::Moved };
        assert_eq!(outcome, expected, "aborted before step {aborted}: {steps:?}");
        let [source, target] = shards.rows;
        assert_eq!((source.owned, target.owned), (aborted <= grant, aborted > grant));
        assert!(!shards.observed.has_slot && shards.observed.subscription == Subscription::Absent);
    }
}

#[test]
fn a_lifted_fence_is_put_up_again_without_another_copy() {
    let (_, undisturbed) = Shards::new().run(usize::MAX, |_| {});
    let fence = undisturbed.iter().position(|step| *step == Step::Fence).unwrap();
    let mut shards = Shards::new();
    shards.observed.fenced_for = FENCE_MAX;
    // The fence was up for too long; the next one is not.
    let (outcome, steps) = shards.run(fence + 2, |observed| observed.fenced_for = Duration::ZERO);
    assert_eq!(outcome, Outcome::Moved);
    let count = |wanted: Step| steps.iter().filter(|step| **step == wanted).count();
    assert_eq!((count(Step::Bar), count(Step::TakeBack), count(Step::Fence)), (1, 1, 2), "{steps:?}");
    assert_eq!(count(Step::Subscribe), 1, "{steps:?}");
}
