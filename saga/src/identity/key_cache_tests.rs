//! Tests when keys are used, fetched again and dropped, as a decision table.

use super::*;

/// What is known of a set of this age, with a key, after a fetch that succeeded and whose cool-down is over.
fn at(age: Option<u64>) -> Situation {
    Situation {
        age: age.map(Duration::from_secs),
        has_key: age.is_some(),
        is_fetching: false,
        has_cooled: true,
        has_failed: false,
        has_waited: false,
    }
}

const YOUNG: Option<u64> = Some(149);
const DUE: Option<u64> = Some(150);
const OLD: Option<u64> = Some(300);
const LAPSED: Option<u64> = Some(3600);

#[test]
fn keys_are_used_refreshed_and_at_last_dropped() {
    use Verdict::{Unavailable, Unknown, Use, Wait};
    let no_key = |age| Situation { has_key: false, ..at(age) };
    let failed = |situation| Situation { has_failed: true, ..situation };
    let hot = |situation| Situation { has_cooled: false, ..situation };
    let fetching = |situation| hot(Situation { is_fetching: true, ..situation });
    let waited = |situation| Situation { has_waited: true, ..situation };
    for (situation, verdict, fetch) in [
        // A key of the set.
        (at(YOUNG), Use, false),
        (at(DUE), Use, true),
        (hot(at(DUE)), Use, false),
        (fetching(at(DUE)), Use, false),
        (at(OLD), Wait, true),
        (fetching(at(OLD)), Wait, false),
        (failed(at(OLD)), Use, true),
        (failed(hot(at(OLD))), Use, false),
        (failed(fetching(at(OLD))), Use, false),
        (failed(waited(hot(at(OLD)))), Use, false),
        (failed(at(LAPSED)), Wait, true),
        (failed(fetching(at(LAPSED))), Wait, false),
        (failed(hot(at(LAPSED))), Unavailable, false),
        (failed(waited(hot(at(LAPSED)))), Unavailable, false),
        (at(LAPSED), Wait, true),
        (hot(at(OLD)), Unavailable, false),
        // A key that the set does not have.
        (no_key(YOUNG), Wait, true),
        (hot(no_key(YOUNG)), Unknown, false),
        (fetching(no_key(YOUNG)), Wait, false),
        (waited(no_key(YOUNG)), Unknown, false),
        (waited(hot(no_key(YOUNG))), Unknown, false),
        (failed(hot(no_key(DUE))), Unavailable, false),
        (failed(waited(hot(no_key(OLD)))), Unavailable, false),
        (no_key(OLD), Wait, true),
        // No set.
        (fetching(at(None)), Wait, false),
        (at(None), Wait, true),
        (failed(hot(at(None))), Unavailable, false),
        (failed(at(None)), Wait, true),
        (failed(waited(at(None))), Unavailable, false),
    ] {
        let step = decide(situation, &Limits::default());
        assert_eq!(step, Step { verdict, fetch }, "{situation:?}");
    }
}

#[test]
fn a_key_that_the_set_has_not_is_never_used_and_no_fetch_begins_in_the_cool_down() {
    let flags = [false, true];
    for age in [None, YOUNG, DUE, OLD, LAPSED] {
        for bits in 0..32_usize {
            let flag = |bit: usize| flags[(bits >> bit) & 1];
            let situation = Situation {
                age: age.map(Duration::from_secs),
                has_key: flag(0) && age.is_some(),
                is_fetching: flag(1),
                has_cooled: flag(2),
                has_failed: flag(3),
                has_waited: flag(4),
            };
            let Step { verdict, fetch } = decide(situation, &Limits::default());
            assert!(verdict != Verdict::Use || situation.has_key, "{situation:?}");
            assert!(verdict != Verdict::Use || age != LAPSED, "{situation:?}");
            assert!(verdict != Verdict::Wait || !situation.has_waited, "{situation:?}");
            assert!(
                verdict != Verdict::Wait || fetch || situation.is_fetching,
                "nothing to wait for: {situation:?}"
            );
            assert!(!fetch || situation.has_cooled && !situation.is_fetching, "{situation:?}");
        }
    }
}

#[test]
fn the_page_states_the_limits() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PRODUCTION.md");
    let page = std::fs::read_to_string(page).unwrap();
    let limits = Limits::default();
    for text in [
        format!("| {} s, at the earliest |", limits.cool_down.as_secs()),
        format!("| {} min |", limits.due.as_secs_f64() / 60.0),
        format!("| {} min |", limits.age_max.as_secs() / 60),
        format!("| {} h |", limits.outage_max.as_secs() / 3600),
        format!("A fetch may take {} seconds", limits.fetch_timeout.as_secs()),
    ] {
        assert!(page.contains(&text), "the page does not say {text:?}");
    }
}

/// Each limit means something only below the next.
#[test]
fn the_limits_are_in_order() {
    let limits = Limits::default();
    assert!(limits.fetch_timeout < limits.cool_down);
    assert!(
        limits.cool_down < limits.due && limits.due < limits.age_max && limits.age_max < limits.outage_max
    );
    // A set that is due is fetched, and a failure is known, before anybody waits for it.
    assert!(limits.due + limits.fetch_timeout < limits.age_max);
}
