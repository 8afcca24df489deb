//! Tests the full table of states and events, and the shared breaker.

use std::time::Duration;

use super::*;

const PAUSE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits { faults: 3, pause: PAUSE, probes: 2 };

fn closed(faults: u32) -> State {
    State::Closed { faults }
}

fn half_open(under_way: u32, answered: u32) -> State {
    State::HalfOpen { under_way, answered }
}

#[test]
fn every_state_with_every_event() {
    let now = Instant::now();
    let later = State::Open { until: now + PAUSE };
    let (shut, due) = (State::Open { until: now + Duration::from_nanos(1) }, State::Open { until: now });
    // State; a call begins: then, or refused; a call ends: answered, fault or unreachable, neither.
    let table = [
        (closed(0), Some(closed(0)), [closed(0), closed(1), closed(0)]),
        (closed(1), Some(closed(1)), [closed(0), closed(2), closed(1)]),
        (closed(2), Some(closed(2)), [closed(0), later, closed(2)]),
        (shut, None, [shut, shut, shut]),
        (due, Some(half_open(1, 0)), [due, due, due]),
        (half_open(0, 0), Some(half_open(1, 0)), [half_open(0, 1), later, half_open(0, 0)]),
        (half_open(1, 0), Some(half_open(2, 0)), [half_open(0, 1), later, half_open(0, 0)]),
        (half_open(2, 0), None, [half_open(1, 1), later, half_open(1, 0)]),
        (half_open(0, 1), Some(half_open(1, 1)), [closed(0), later, half_open(0, 1)]),
        (half_open(1, 1), None, [closed(0), later, half_open(0, 1)]),
    ];
    for (state, begun, ends) in table {
        let expected = begun.map_or((state, false), |then| (then, true));
        assert_eq!(state.begin(now, &LIMITS), expected, "{state:?} begins");
        let healths = [Health::Answered, Health::Fault, Health::Neither];
        let ended = healths.map(|health| state.end(health, now, &LIMITS));
        assert_eq!(ended, ends, "{state:?} ends");
        assert_eq!(state.end(Health::Unreachable, now, &LIMITS), ends[1], "{state:?}");
        // There is room exactly if a call may begin.
        let none = matches!(state.capacity(now, &LIMITS), Capacity::None { .. });
        assert_eq!(none, begun.is_none(), "{state:?}");
    }
    assert_eq!(closed(2).capacity(now, &LIMITS), Capacity::Free);
    assert_eq!(due.capacity(now, &LIMITS), Capacity::Probes(2));
    assert_eq!(half_open(0, 1).capacity(now, &LIMITS), Capacity::Probes(1));
    assert_eq!(shut.capacity(now, &LIMITS), Capacity::None { until: Some(now + Duration::from_nanos(1)) });
    assert_eq!(half_open(2, 0).capacity(now, &LIMITS), Capacity::None { until: None });
}

fn breaker(pause: Duration) -> Breaker {
    Breaker::new(Limits { pause, ..LIMITS }, IntGauge::new("breaker_state", "State.").unwrap())
}

fn charge(service_id: &str, user: Uuid) -> Charge {
    let (payment_id, client_number) = (Uuid::now_v7(), "1".to_owned());
    let service_id = service_id.to_owned();
    Charge { payment_id, user_id: user, client_number, service_id, amount: 1, traceparent: None }
}

/// A call for `power`, of some user.
fn begin(breaker: &Breaker) -> Option<Pass> {
    breaker.begin(&charge("power", Uuid::now_v7())).ok()
}

fn end(breaker: &Breaker, healths: &[Health]) {
    for health in healths {
        begin(breaker).expect("calls flow").ended(*health);
    }
}

const FAULTS: [Health; 3] = [Health::Fault; 3];
const UNREACHABLE: [Health; 3] = [Health::Unreachable; 3];

#[tokio::test]
async fn it_opens_on_faults_in_a_row_and_closes_when_all_probes_are_answered() {
    let breaker = breaker(Duration::from_millis(1));
    end(
        &breaker,
        &[Health::Unreachable, Health::Unreachable, Health::Answered, Health::Unreachable, Health::Neither],
    );
    let flowing = breaker.opening().await;
    assert_eq!((flowing.probes, breaker.gauge.get()), (None, 0));
    end(&breaker, &UNREACHABLE[..2]);
    breaker.over(flowing).await;
    assert_eq!(breaker.gauge.get(), 2);
    assert_eq!(breaker.opening().await.probes, Some(2), "when the pause is over");
    let probes = [begin(&breaker).unwrap(), begin(&breaker).unwrap()];
    assert!(begin(&breaker).is_none(), "no third probe");
    assert_eq!(breaker.gauge.get(), 1);
    for probe in probes {
        probe.ended(Health::Answered);
    }
    assert_eq!((breaker.opening().await.probes, breaker.gauge.get()), (None, 0));
}

#[tokio::test]
async fn a_call_of_an_earlier_period_says_nothing_and_a_lost_probe_makes_room() {
    let breaker = breaker(Duration::from_millis(1));
    let early = [begin(&breaker).unwrap(), begin(&breaker).unwrap(), begin(&breaker).unwrap()];
    end(&breaker, &UNREACHABLE);
    assert_eq!(breaker.opening().await.probes, Some(2));
    let (probe, lost) = (begin(&breaker).unwrap(), begin(&breaker).unwrap());
    let [one, two, three] = early;
    one.ended(Health::Unreachable);
    two.ended(Health::Answered);
    three.ended(Health::Answered);
    assert_eq!(breaker.gauge.get(), 1, "neither opened nor closed by what began before");
    drop(lost);
    assert_eq!(breaker.opening().await.probes, Some(1));
    probe.ended(Health::Unreachable);
    assert_eq!(breaker.gauge.get(), 2);
}

#[tokio::test]
async fn while_open_nothing_begins() {
    let breaker = breaker(PAUSE);
    end(&breaker, &UNREACHABLE);
    assert!(begin(&breaker).is_none());
    let opening = tokio::time::timeout(Duration::from_millis(20), breaker.opening()).await;
    assert!(opening.is_err(), "{opening:?}");
}

#[tokio::test]
async fn each_service_has_its_own_and_messages_are_taken_while_one_works() {
    let breaker = breaker(PAUSE);
    end(&breaker, &FAULTS);
    let water = charge("water", Uuid::now_v7());
    breaker.begin(&water).expect("another service").ended(Health::Answered);
    assert_eq!((breaker.opening().await.probes, breaker.gauge.get()), (None, 2));
    let refusal = breaker.begin(&charge("power", Uuid::now_v7())).err().expect("still open");
    assert!(refusal.until.is_some_and(|until| until > Instant::now()));
    // Nobody can connect: that is nobody's own fault.
    let (flowing, user) = (breaker.opening().await, Uuid::now_v7());
    for _ in 0..3 {
        breaker.begin(&charge("water", user)).expect("calls flow").ended(Health::Unreachable);
    }
    breaker.over(flowing).await;
    let refusal = breaker.begin(&charge("gas", Uuid::now_v7())).err().expect("all are refused");
    assert!(refusal.until.is_some());
    let opening = tokio::time::timeout(Duration::from_millis(20), breaker.opening()).await;
    assert!(opening.is_err(), "{opening:?}");
}

#[tokio::test]
async fn one_user_alone_does_not_open_it() {
    let limits = Limits { faults: 10, ..LIMITS };
    let breaker = Breaker::new(limits, IntGauge::new("breaker_state", "State.").unwrap());
    let user = Uuid::now_v7();
    let fault = |user| breaker.begin(&charge("power", user)).ok().map(|pass| pass.ended(Health::Fault));
    for _ in 0..1_000 {
        fault(user).expect("closed");
    }
    // Two of his count; eight of others do the rest.
    for _ in 0..7 {
        fault(Uuid::now_v7()).expect("closed");
    }
    assert_eq!(breaker.gauge.get(), 0);
    fault(Uuid::now_v7()).expect("closed");
    assert_eq!(breaker.gauge.get(), 2);
}

#[test]
fn one_user_alone_does_not_keep_it_open() {
    let (start, user, other) = (Instant::now(), Uuid::now_v7(), Uuid::now_v7());
    let mut now = Circuit { state: State::Open { until: start }, ..Circuit::closed() };
    now.state = now.begins(user, start, &LIMITS).expect("the pause is over");
    let health = now.counted(user, Health::Fault, start, &LIMITS);
    now.state = now.state.end(health, start, &LIMITS);
    let later = start + LIMITS.pause;
    assert_eq!(now.state, State::Open { until: later });
    let until = start + LIMITS.pause * SUSPECT_PAUSES_MAX;
    assert_eq!(now.begins(user, later, &LIMITS), Err(Refusal { until: Some(until) }), "others first");
    now.state = now.begins(other, later, &LIMITS).expect("another user");
    assert_eq!(now.begins(user, later, &LIMITS), Err(Refusal { until: Some(until) }));
    // Alone he is not kept waiting for ever, and an answer clears him.
    assert!(now.begins(user, until, &LIMITS).is_ok());
    now.counted(user, Health::Answered, later, &LIMITS);
    assert!(now.begins(user, later, &LIMITS).is_ok());
}

#[tokio::test]
async fn names_that_nobody_knows_cost_no_memory() {
    let breaker = breaker(PAUSE);
    for n in 0..SERVICES_MAX + 100 {
        breaker.begin(&charge(&n.to_string(), Uuid::now_v7())).unwrap().ended(Health::Answered);
    }
    assert!(breaker.table.borrow().services.len() <= SERVICES_MAX + 1);
}
