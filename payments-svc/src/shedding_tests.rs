//! Tests the decisions as tables, and the sampler with a clock of its own.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

const DELAY_MAX: Duration = Duration::from_secs(10);
const OPEN: Gate = Gate::Open { late: 0 };
const SHEDDING: Gate = Gate::Shedding { on_time: 0 };

#[test]
fn a_hold_is_late_by_its_delay_and_on_time_only_once_it_is_there() {
    let seconds = Duration::from_secs;
    let almost = Gate::Open { late: LATE_MAX - 1 };
    for (gate, is_answered, delay, expected) in [
        (OPEN, true, seconds(0), Punctuality::OnTime),
        (OPEN, true, seconds(10), Punctuality::OnTime),
        (OPEN, true, seconds(11), Punctuality::Late),
        (OPEN, false, seconds(0), Punctuality::Waits),
        (OPEN, false, seconds(10), Punctuality::Waits),
        (OPEN, false, seconds(11), Punctuality::Late),
        (almost, false, seconds(10), Punctuality::Waits),
        (SHEDDING, true, seconds(5), Punctuality::OnTime),
        (SHEDDING, true, seconds(6), Punctuality::Late),
        (SHEDDING, false, seconds(5), Punctuality::Waits),
        (SHEDDING, false, seconds(6), Punctuality::Late),
    ] {
        let verdict = judge(gate, DELAY_MAX, is_answered, delay);
        assert_eq!(verdict, expected, "{gate:?}, answered {is_answered}, after {delay:?}");
    }
}

#[test]
fn every_verdict_leads_from_every_gate_to_one_gate() {
    use Punctuality::{Late, OnTime, Waits};
    for late in 0..LATE_MAX {
        let gate = Gate::Open { late };
        assert_eq!(next(gate, OnTime), OPEN);
        assert_eq!(next(gate, Waits), gate);
        let after = if late + 1 == LATE_MAX { SHEDDING } else { Gate::Open { late: late + 1 } };
        assert_eq!(next(gate, Late), after);
    }
    for on_time in 0..ON_TIME_MIN {
        let gate = Gate::Shedding { on_time };
        assert_eq!(next(gate, Late), SHEDDING);
        assert_eq!(next(gate, Waits), gate);
        let after = if on_time + 1 == ON_TIME_MIN { OPEN } else { Gate::Shedding { on_time: on_time + 1 } };
        assert_eq!(next(gate, OnTime), after);
    }
}

/// A sampler, its time, and the payments that it was given.
struct Harness {
    sampler: Sampler,
    now: Instant,
    made: Vec<Uuid>,
}

impl Harness {
    fn new() -> Self {
        let sampler = Sampler::new(DELAY_MAX, Metrics::register().unwrap());
        Self { sampler, now: Instant::now(), made: Vec::new() }
    }

    /// Requests to pay once per interval, until `until`; returns how many were accepted.
    fn pay(&mut self, requests: u32) -> usize {
        let before = self.made.len();
        for _ in 0..requests {
            self.now += self.sampler.interval;
            if self.sampler.admission(self.now) == Admission::Accept {
                let payment_id = Uuid::from_u128(self.made.len() as u128 + 1);
                self.sampler.sample(self.now, Uuid::nil(), payment_id);
                self.made.push(payment_id);
            }
        }
        self.made.len() - before
    }

    fn judge(&self, is_answered: bool, delay: Duration) {
        let samples = self.sampler.samples();
        let hold = |(_, payment_id): &(Uuid, Uuid)| Hold { payment_id: *payment_id, is_answered, delay };
        self.sampler.judge(&samples, &samples.iter().map(hold).collect::<Vec<_>>());
    }

    fn gate(&self) -> Gate {
        self.sampler.state().gate
    }
}

#[test]
fn payments_are_refused_once_holds_are_late_and_accepted_again_once_they_come() {
    let mut harness = Harness::new();
    assert_eq!(harness.pay(LATE_MAX), LATE_MAX as usize);
    harness.judge(false, DELAY_MAX);
    assert_eq!((harness.gate(), harness.sampler.metrics.shedding.get()), (OPEN, 0));
    harness.judge(false, DELAY_MAX + Duration::from_millis(1));
    assert_eq!((harness.gate(), harness.sampler.metrics.shedding.get()), (SHEDDING, 1));
    assert!(harness.sampler.samples().is_empty(), "a verdict ends a sample");

    assert_eq!(harness.sampler.admission(harness.now), Admission::Accept, "one shows whether it is over");
    assert_eq!(harness.sampler.admission(harness.now), Admission::Shed);
    assert_eq!(harness.sampler.admission(harness.now), Admission::Shed);
    assert_eq!(harness.pay(5), 5, "one per interval");
    harness.judge(true, DELAY_MAX);
    assert_eq!(harness.gate(), SHEDDING, "what came late is late");

    assert_eq!(harness.pay(ON_TIME_MIN), ON_TIME_MIN as usize);
    harness.judge(true, Duration::from_millis(20));
    assert_eq!((harness.gate(), harness.sampler.metrics.shedding.get()), (OPEN, 0));
}

/// Payments whose hold never comes, as when it is parked, among others whose hold does.
#[test]
fn single_late_payments_refuse_nobody() {
    let mut harness = Harness::new();
    for _ in 0..100 {
        assert_eq!(harness.pay(LATE_MAX - 1), LATE_MAX as usize - 1);
        harness.judge(false, DELAY_MAX * 2);
        assert_eq!(harness.pay(1), 1);
        harness.judge(true, Duration::from_millis(20));
    }
}

#[test]
fn there_is_one_sample_per_interval_and_so_a_bounded_number() {
    let harness = Harness::new();
    let step = harness.sampler.interval / 100;
    for nth in 0..100_000_u32 {
        harness.sampler.sample(harness.now + step * nth, Uuid::nil(), Uuid::from_u128(nth.into()));
    }
    assert_eq!(harness.sampler.samples().len(), 1_000);
}

#[test]
fn a_row_that_is_gone_is_no_sample_any_more() {
    let mut harness = Harness::new();
    harness.pay(3);
    let samples = harness.sampler.samples();
    harness.sampler.judge(&samples, &[]);
    assert_eq!((harness.sampler.samples().len(), harness.gate()), (0, OPEN));
}

/// A late one that is judged before an earlier one that was on time would count as the later of the two.
#[test]
fn samples_are_judged_in_the_order_in_which_they_were_accepted() {
    let mut harness = Harness::new();
    let late = LATE_MAX as usize;
    harness.pay(LATE_MAX + 1);
    let hold = |(nth, payment_id): (usize, &Uuid)| {
        let delay = if nth < late { DELAY_MAX * 2 } else { Duration::ZERO };
        Hold { payment_id: *payment_id, is_answered: true, delay }
    };
    let newest_first: Vec<Hold> = harness.made.iter().enumerate().map(hold).rev().collect();
    harness.sampler.judge(&harness.sampler.samples(), &newest_first);
    assert_eq!(harness.gate(), Gate::Shedding { on_time: 1 });
    assert!(harness.sampler.samples().is_empty());
}

/// A quarter of all payments is late where one of four partitions stands still.
#[test]
fn a_partition_that_stands_still_refuses_nobody_by_chance() {
    assert!(0.25_f64.powi(LATE_MAX.cast_signed()) < 1e-6, "{LATE_MAX}");
    const {
        assert!(
            1 < ON_TIME_MIN && ON_TIME_MIN < LATE_MAX,
            "one that is on time proves nothing, and three suffice"
        );
    }
}

#[test]
fn only_a_verdict_is_measured() {
    let mut harness = Harness::new();
    harness.pay(3);
    harness.judge(false, DELAY_MAX);
    let measured = |harness: &Harness| harness.sampler.metrics.hold_seconds.get_sample_count();
    assert_eq!(
        (measured(&harness), harness.sampler.samples().len()),
        (0, 3),
        "they wait, and are looked at again"
    );
    harness.judge(true, DELAY_MAX);
    assert_eq!((measured(&harness), harness.sampler.samples().len()), (3, 0));
}

/// Of a server that does not exist: it connects when it is asked.
fn shard_at(address: SocketAddr) -> Router {
    saga::http::install_provider();
    let pool = saga::postgres::pool(&format!("postgresql://nobody@{address}/none"), 1, "test").unwrap();
    Router::one(pool)
}

#[tokio::test]
async fn a_delay_of_zero_refuses_nobody() {
    let router = shard_at("127.0.0.1:1".parse().unwrap());
    let shedding = Shedding::start(Duration::ZERO, router, Metrics::register().unwrap());
    assert!(shedding.0.is_none(), "there is nothing to look at");
    shedding.accepted(Uuid::nil(), Uuid::nil());
    assert_eq!(shedding.admission(), Admission::Accept);
}

#[tokio::test]
async fn without_payments_the_database_is_not_asked_and_without_an_acceptor_never_again() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sampler = Arc::new(Sampler::new(DELAY_MAX, Metrics::register().unwrap()));
    let interval = Duration::from_millis(5);
    let looks =
        tokio::spawn(look(Arc::downgrade(&sampler), interval, shard_at(server.local_addr().unwrap())));
    assert!(timeout(interval * 20, server.accept()).await.is_err(), "there is no sample");
    sampler.sample(Instant::now(), Uuid::nil(), Uuid::nil());
    let (connection, _) = timeout(Duration::from_secs(60), server.accept()).await.unwrap().unwrap();
    // The read fails, and the sample stays.
    drop((connection, server));
    assert_eq!(sampler.samples().len(), 1);
    drop(sampler);
    timeout(Duration::from_secs(60), looks).await.unwrap().unwrap();
}

#[test]
fn the_interval_follows_from_the_delay() {
    for (delay_max, interval) in [(1, 100), (10, 200), (60, 1_000), (600, 1_000)] {
        let sampler = Sampler::new(Duration::from_secs(delay_max), Metrics::register().unwrap());
        assert_eq!(sampler.interval, Duration::from_millis(interval), "{delay_max} s");
    }
}
