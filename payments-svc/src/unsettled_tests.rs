use uuid::Uuid;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn payments(seconds: impl IntoIterator<Item = i64>) -> Vec<UnsettledPayment> {
    let payment = |second: i64| UnsettledPayment {
        initiated_at: at(second),
        user_id: Uuid::nil(),
        payment_id: Uuid::from_u128(second as u128),
    };
    seconds.into_iter().map(payment).collect()
}

#[test]
fn each_time_is_read_once_when_it_is_overdue() {
    let mut tracker = Tracker::new(10);
    assert_eq!(tracker.next_window(at(100)), None, "what was there before is the walk's");
    assert_eq!(tracker.next_window(at(110)), Some((at(70), at(80))));
    tracker.read(&payments([72]), at(80));
    assert_eq!(tracker.next_window(at(110)), None);
    assert_eq!(tracker.next_window(at(125)), Some((at(80), at(95))));
    assert_eq!(tracker.ages(at(125)), [53]);
}

#[test]
fn an_outage_is_read_in_windows() {
    let mut tracker = Tracker::new(10);
    tracker.next_window(at(0));
    let mut windows = Vec::new();
    while let Some((from, until)) = tracker.next_window(at(1300)) {
        tracker.read(&[], until);
        windows.push((from, until));
    }
    assert_eq!(windows, [(at(-30), at(570)), (at(570), at(1170)), (at(1170), at(1270))]);
}

#[test]
fn a_clock_that_was_set_back_is_followed() {
    let mut tracker = Tracker::new(10);
    tracker.next_window(at(100));
    assert_eq!(tracker.next_window(at(40)), None);
    assert_eq!(tracker.next_window(at(50)), Some((at(10), at(20))), "what is accepted after the change");
}

#[test]
fn what_has_ended_is_forgotten_and_makes_room() {
    let mut tracker = Tracker::new(4);
    tracker.next_window(at(100));
    tracker.read(&payments([71, 72, 73, 74]), at(80));
    assert!(tracker.is_full());
    assert_eq!(tracker.next_window(at(200)), None, "no room");
    tracker.add_walked(&payments([1]));
    assert_eq!(tracker.ages(at(100)), [29, 28, 27, 26]);
    tracker.keep(&payments([72]).into_iter().collect());
    assert_eq!(tracker.ages(at(100)), [28]);
    assert_eq!(tracker.next_window(at(200)), Some((at(74), at(170))), "from the last that was read");
}

#[test]
fn reading_goes_on_where_the_room_ended() {
    let mut tracker = Tracker::new(4);
    tracker.next_window(at(100));
    tracker.add_walked(&payments([1, 2]));
    tracker.read(&payments([71, 72, 73]), at(80));
    assert_eq!(tracker.ages(at(100)), [99, 98, 29, 28], "the third found no room");
    tracker.keep(&HashSet::new());
    assert_eq!(tracker.next_window(at(110)), Some((at(73), at(80))), "the third is read again");
}

#[test]
fn a_walk_leaves_to_the_age_what_is_young() {
    let mut tracker = Tracker::new(4);
    tracker.add_walked(&payments([1]));
    assert!(tracker.known.is_empty(), "nothing is read yet");
    tracker.next_window(at(100));
    tracker.add_walked(&payments([69, 70, 99]));
    assert_eq!(tracker.ages(at(100)), [31]);
}
