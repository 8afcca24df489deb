//! Tests who is woken, and until when a row is read.

use super::*;

fn waiters() -> (Waiters, watch::Receiver<bool>, watch::Sender<u64>) {
    let (demand, demanded) = watch::channel(false);
    let (begun, beginnings) = watch::channel(1);
    let waiting = IntGauge::new("waiting", "Of this test.").unwrap();
    let registry = Arc::new(Registry { payments: Mutex::default(), demand, waiting });
    (Waiters { registry, beginnings }, demanded, begun)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(1)
}

#[tokio::test]
async fn a_change_wakes_those_who_wait_for_its_payment_and_no_others() {
    let (waiters, _demanded, _begun) = waiters();
    let (payment, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut all = [waiters.register(payment), waiters.register(payment), waiters.register(other)];
    waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
    let woken =
        [all[0].changed(1, soon()).await, all[1].changed(1, soon()).await, all[2].changed(1, soon()).await];
    assert_eq!(woken, [true, true, false]);
    assert!(!all[0].changed(2, soon()).await, "the row shows the event");
    waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
    assert!(!all[0].changed(2, soon()).await, "the event is emitted again");
}

#[tokio::test]
async fn a_row_that_does_not_show_its_event_yet_is_read_again() {
    let (waiters, _demanded, _begun) = waiters();
    let payment = Uuid::from_u128(1);
    let (mut waiter, deadline) = (waiters.register(payment), Instant::now() + Duration::from_secs(60));
    waiters.registry.changed(payment, Change { version: 3, is_terminal: true });
    let began = Instant::now();
    for _ in 0..4 {
        assert!(waiter.changed(2, deadline).await, "version 3 is there, and was read as 2");
    }
    assert!(began.elapsed() >= 2 * REREAD_PAUSE_MIN, "after the first, reads pause");
    assert!(waiter.ended(deadline).await);
    assert!(!waiter.changed(2, Instant::now()).await, "the deadline holds");
    assert!(!waiter.changed(3, soon()).await, "it was read");
}

#[test]
fn the_id_of_an_event_ends_with_its_version() {
    assert_eq!(version("payments/payments/01a2062e-b407-7262-acff-35a6a1c53fdc/3"), Some(3));
    assert_eq!([version(""), version("payments/payments/x/"), version("5/y")], [None; 3]);
}

#[tokio::test]
async fn an_end_is_not_hidden_by_an_event_that_is_emitted_again() {
    let (waiters, _demanded, _begun) = waiters();
    let payment = Uuid::from_u128(1);
    let mut waiter = waiters.register(payment);
    waiters.registry.changed(payment, Change { version: 3, is_terminal: true });
    waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
    assert!(waiter.ended(Instant::now() + Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_version_is_not_hidden_by_one_before_it_that_is_emitted_again() {
    let (waiters, _demanded, _begun) = waiters();
    let payment = Uuid::from_u128(1);
    let mut waiter = waiters.register(payment);
    for version in [3, 2] {
        waiters.registry.changed(payment, Change { version, is_terminal: false });
    }
    assert!(waiter.changed(2, Instant::now() + Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_waiter_reads_again_once_the_topic_is_followed_anew() {
    let (waiters, _demanded, begun) = waiters();
    let mut waiter = waiters.register(Uuid::from_u128(1));
    assert!(!waiter.changed(1, soon()).await, "it is followed already");
    begun.send_modify(|count| *count += 1);
    assert!(waiter.ended(soon()).await && !waiter.ended(soon()).await);
    drop(begun);
    assert!(!waiter.changed(1, soon()).await, "the process ends");
}

#[tokio::test]
async fn there_is_demand_while_somebody_waits_and_nothing_is_kept_after() {
    let (waiters, demanded, _begun) = waiters();
    let payment = Uuid::from_u128(1);
    assert!(!*demanded.borrow());
    let (first, second) = (waiters.register(payment), waiters.register(payment));
    drop(first);
    assert!(*demanded.borrow());
    drop(second);
    assert!(!*demanded.borrow() && waiters.registry.payments().is_empty());
    assert_eq!(waiters.registry.waiting.get(), 0);
}

#[test]
fn a_payment_ends_with_four_of_its_events() {
    let ends: Vec<&str> =
        EventType::ALL.iter().filter(|event| is_terminal(**event)).map(|event| event.as_str()).collect();
    let expected =
        ["payment.completed.v1", "payment.rejected.v1", "payment.failed.v1", "payment.cancelled.v1"];
    assert_eq!(ends, expected);
}
