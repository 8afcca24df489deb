use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn observed(question: Question, wal_end: u64, flushed: u64) -> Observation {
    Observation { question, wal_end: Lsn(wal_end), standing: Standing::Flushed(Lsn(flushed)) }
}

/// A gate of a session that follows others which kept to the rule, and its time.
fn gate() -> (Gate, Instant) {
    let now = Instant::now();
    (Gate::new(true, now), now)
}

/// A transaction that was committed at 10 and whose commit record ends at 20.
fn passes(gate: &mut Gate, now: Instant) -> bool {
    gate.passes(Lsn(10), || Some(Lsn(20)), now)
}

#[test]
fn a_transaction_passes_once_its_whole_commit_record_is_flushed() {
    for (flushed, expected) in [(0, false), (10, false), (11, false), (19, false), (20, true), (90, true)] {
        let (mut gate, now) = gate();
        assert!(!passes(&mut gate, now), "nothing is known yet");
        let question = gate.ask(now).expect("a question");
        gate.observe(observed(question, 100, flushed), now);
        assert_eq!(passes(&mut gate, now), expected, "flushed up to {flushed}");
        assert_eq!(gate.held_since().is_none(), expected);
    }
}

#[test]
fn without_a_synchronous_standby_nothing_passes() {
    for (standing, reason) in [
        (Standing::NotConfigured, Reason::NotConfigured),
        (Standing::TooFew { needed: 2, connected: 1 }, Reason::TooFew { needed: 2, connected: 1 }),
    ] {
        let (mut gate, now) = gate();
        assert!(!passes(&mut gate, now));
        assert_eq!(gate.held(), Some((Lsn(10), Reason::NotAnswered)));
        let question = gate.ask(now).expect("a question");
        gate.observe(Observation { question, wal_end: Lsn(100), standing }, now);
        assert!(!passes(&mut gate, now));
        assert_eq!(gate.held(), Some((Lsn(10), reason)));
    }
}

/// The stream has not shown the end of a large transaction yet.
#[test]
fn without_its_end_a_transaction_waits_for_the_end_of_the_wal_as_it_was_after_it_arrived() {
    let (mut gate, mut now) = gate();
    let passes = |gate: &mut Gate, now| gate.passes(Lsn(10), || None, now);
    // This question was asked before the transaction arrived, so the answer says nothing of its commit record.
    assert!(!gate.passes(Lsn(1), || Some(Lsn(2)), now));
    let before = gate.ask(now).expect("a question");
    gate.observe(observed(before, 12, 12), now);
    assert!(gate.passes(Lsn(1), || Some(Lsn(2)), now));
    assert!(!passes(&mut gate, now), "12 may be in the middle of the record");
    now += 10 * MS;
    let question = gate.ask(now).expect("a question");
    gate.observe(observed(question, 40, 30), now);
    assert!(!passes(&mut gate, now));
    now += 10 * MS;
    let question = gate.ask(now).expect("a question");
    // The server's WAL has grown meanwhile, which is of no concern.
    gate.observe(observed(question, 90, 40), now);
    assert!(passes(&mut gate, now));
}

/// An answer on its way when a transaction arrives was asked for too early for the second rule.
#[test]
fn an_answer_to_an_earlier_question_bounds_no_later_transaction() {
    let (mut gate, now) = gate();
    assert!(!gate.passes(Lsn(1), || Some(Lsn(2)), now));
    let early = gate.ask(now).expect("a question");
    // The stream begins again at another transaction while the answer is on its way.
    assert!(!gate.passes(Lsn(10), || None, now));
    gate.observe(observed(early, 15, 15), now);
    assert!(!gate.passes(Lsn(10), || None, now));
    let late = gate.ask(now + 10 * MS).expect("a question");
    gate.observe(observed(late, 40, 40), now);
    assert!(gate.passes(Lsn(10), || None, now));
}

#[test]
fn the_server_is_asked_only_while_something_waits_and_less_and_less_often() {
    let (mut gate, began) = gate();
    assert_eq!((gate.ask(began), gate.due()), (None, None), "nothing waits");
    assert!(!passes(&mut gate, began));
    assert_eq!(gate.due(), Some(began));
    let first = gate.ask(began).expect("a question");
    assert_eq!((gate.ask(began), gate.due()), (None, None), "one question at a time");
    gate.observe(observed(first, 100, 0), began + MS);
    assert_eq!(gate.ask(began + 2 * MS), None);
    assert_eq!(gate.due(), Some(began + MS + PAUSE_MIN));
    // A server that does not answer is asked again, too.
    let second = gate.ask(began + 3 * MS).expect("a question");
    gate.answered(second, began + 100 * MS);
    assert_eq!(gate.due(), Some(began + 125 * MS));
    let third = gate.ask(began + 125 * MS).expect("a question");
    gate.observe(observed(third, 100, 0), began + Duration::from_secs(3600));
    assert_eq!(gate.due(), Some(began + Duration::from_secs(3600) + PAUSE_MAX));
    let fourth = gate.ask(began + Duration::from_secs(3602)).expect("a question");
    gate.observe(observed(fourth, 100, 20), began + Duration::from_secs(3602));
    assert!(passes(&mut gate, began + Duration::from_secs(3602)));
    assert_eq!(gate.due(), None);
}

/// A stream that is not read says nothing of its server, so only the answers show that there is one.
#[test]
fn a_server_that_does_not_answer_while_a_transaction_waits_is_silent() {
    let (mut gate, began) = gate();
    let at = |seconds| began + Duration::from_secs(seconds);
    assert_eq!(gate.silence(at(90)), Duration::ZERO, "nothing waits");
    assert!(!passes(&mut gate, at(100)));
    assert_eq!(gate.silence(at(110)).as_secs(), 10);
    let failed = gate.ask(at(110)).expect("a question");
    gate.answered(failed, at(114));
    assert_eq!(gate.silence(at(120)).as_secs(), 20, "a failure is no answer");
    let observed_too = gate.ask(at(120)).expect("a question");
    gate.observe(observed(observed_too, 100, 0), at(120));
    assert_eq!(gate.silence(at(121)).as_secs(), 1, "it waits for the standbys, and the server answers");
    let last = gate.ask(at(122)).expect("a question");
    gate.observe(observed(last, 100, 20), at(122));
    assert!(passes(&mut gate, at(122)));
    assert_eq!(gate.silence(at(200)), Duration::ZERO);
}

/// A burst of small transactions must not become a burst of questions.
#[test]
fn transactions_that_arrive_together_share_a_question() {
    let (mut gate, now) = gate();
    assert!(!passes(&mut gate, now));
    let question = gate.ask(now).expect("a question");
    gate.observe(observed(question, 100, 60), now);
    assert!(passes(&mut gate, now));
    assert!(gate.passes(Lsn(30), || Some(Lsn(40)), now));
    assert!(!gate.passes(Lsn(60), || Some(Lsn(70)), now));
    assert_eq!(gate.ask(now), None, "the last answer is too young");
    assert!(gate.ask(now + PAUSE_MIN).is_some());
}

/// The claim of the checkpoint: it must not cover what a session without the rule emitted.
#[test]
fn the_rule_is_kept_once_everything_emitted_before_the_session_is_flushed() {
    let now = Instant::now();
    let mut gate = Gate::new(false, now);
    assert!(!gate.is_kept());
    let question = gate.ask(now).expect("it asks although nothing waits");
    gate.observe(observed(question, 100, 99), now);
    assert!(!gate.is_kept());
    let question = gate.ask(now + PAUSE_MIN).expect("a question");
    gate.observe(observed(question, 500, 100), now + PAUSE_MIN);
    assert!(gate.is_kept());
    assert_eq!(gate.due(), None, "nothing waits any more");
    assert!(Gate::new(true, now).is_kept());
}

/// A transaction in the WAL: its commit record, and whether the buffer shows its end.
#[derive(Debug, Clone)]
struct Commit {
    record: u64,
    gap: u64,
    in_buffer: bool,
}

#[derive(Debug, Clone)]
enum Event {
    /// The standby flushes so much more, if there is so much.
    Flush(u64),
    /// The server writes so much more WAL.
    Write(u64),
    /// The question on its way is answered, or fails.
    Answer(bool),
    /// The standby leaves or comes back.
    Leave(bool),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0_u64..30).prop_map(Event::Flush),
        (0_u64..30).prop_map(Event::Write),
        any::<bool>().prop_map(Event::Answer),
        any::<bool>().prop_map(Event::Leave),
        (0_u64..20).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 0..200)
}

fn commits() -> impl Strategy<Value = Vec<Commit>> {
    let commit = (1_u64..20, 0_u64..10, any::<bool>()).prop_map(|(record, gap, in_buffer)| Commit {
        record,
        gap,
        in_buffer,
    });
    proptest::collection::vec(commit, 1..8)
}

proptest! {
    /// A server, a standby and a stream in any order of events: nothing passes that the standby has not flushed to its end,
    /// and everything passes once the standby has all and the server answers.
    #[test]
    fn nothing_passes_too_early_and_nothing_waits_for_ever(commits in commits(), events in events()) {
        let mut now = Instant::now();
        let mut gate = Gate::new(true, now);
        let mut position = 0;
        let mut waiting: std::collections::VecDeque<(u64, u64, bool)> = commits.iter().map(|commit| {
            let start = position + commit.gap;
            position = start + commit.record;
            (start, position, commit.in_buffer)
        }).collect();
        // A transaction is received only after its commit record is in the server's WAL.
        let (mut wal_end, mut flushed, mut attached, mut question) = (0_u64, 0_u64, true, None);
        let finish = (0..60).flat_map(|_| [Event::Leave(false), Event::Flush(u64::MAX), Event::Answer(true), Event::Wait(2000)]);
        let written = Event::Write(position);
        for event in events.into_iter().chain([written]).chain(finish) {
            match event {
                Event::Write(bytes) => wal_end += bytes,
                Event::Flush(bytes) => flushed = wal_end.min(flushed.saturating_add(bytes)),
                Event::Leave(leaves) => attached = !leaves,
                Event::Wait(time) => now += Duration::from_millis(time),
                Event::Answer(true) => if let Some(question) = question.take() {
                    let standing = if attached { Standing::Flushed(Lsn(flushed)) } else { Standing::TooFew { needed: 1, connected: 0 } };
                    gate.observe(Observation { question, wal_end: Lsn(wal_end), standing }, now);
                },
                Event::Answer(false) => if let Some(question) = question.take() {
                    gate.answered(question, now);
                },
            }
            while let Some(&(start, end, in_buffer)) = waiting.front() {
                if end > wal_end || !gate.passes(Lsn(start), || in_buffer.then_some(Lsn(end)), now) {
                    break;
                }
                prop_assert!(end <= flushed, "{start}..{end} passed, flushed up to {flushed}");
                waiting.pop_front();
            }
            if question.is_none() {
                question = gate.ask(now);
            }
            if gate.held_since().is_none() {
                prop_assert_eq!(gate.due(), None);
            }
        }
        prop_assert!(waiting.is_empty(), "{waiting:?} wait for ever");
    }
}
