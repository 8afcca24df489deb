//! Requests to cancel: what was never called ends without a call, everything else goes its way.

use std::time::Duration;

use jiff::Timestamp;
use processor_svc::cause::Cause;
use processor_svc::charge::{Charge, ChargeKey};
use processor_svc::saga::{Event, State, Step, To, decide};
use processor_svc::store::cancel::CancelOutcome;
use processor_svc::store::{Admission, Store, Transition};
use processor_svc::work::{Job, Message, park};
use saga::parked::Parked;

use crate::harness::{Database, job, jobs};

const LEASE: Duration = Duration::from_secs(30);
const CALLING: State = State::Calling { attempt: 1, exposed: false };

async fn cancel(store: &Store, jobs: &[Job]) -> Vec<CancelOutcome> {
    store.cancel(&jobs.iter().collect::<Vec<_>>(), &[], parked).await.unwrap()
}

async fn admit(store: &Store, jobs: &[Job]) -> Vec<Admission> {
    store.admit(&jobs.iter().collect::<Vec<_>>(), &[]).await.unwrap()
}

fn parked(index: usize, reason: &str) -> Parked {
    let message = Message { message_id: Some(index.to_string()), ..Message::default() };
    park("topic", &message, reason)
}

/// Admits a charge and moves it on.
async fn admitted(store: &Store, steps: &[To]) -> Job {
    let job = job("1");
    admit(store, std::slice::from_ref(&job)).await;
    let mut from = CALLING;
    for to in steps {
        let key @ ChargeKey { payment_id, user_id } = job.charge.key();
        let transition = Transition { payment_id, user_id, from, to: to.clone(), pause: LEASE };
        assert_eq!(store.apply(&[transition]).await.unwrap().len(), 1);
        from = store.states(&[key]).await.unwrap()[&payment_id];
    }
    job
}

fn waiting() -> To {
    To::Waiting { attempt: 1, why: Cause::NotConnected }
}

fn unknown() -> To {
    To::Unknown { attempt: 1, why: Cause::TimedOut }
}

#[tokio::test]
async fn a_charge_is_cancelled_unless_a_call_may_have_been_made() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let mut late = job("1");
    late.expires_at = Some(Timestamp::now() - Duration::from_secs(60));
    admit(&store, std::slice::from_ref(&late)).await;
    let mut absent = job("1");
    absent.expires_at = Some(Timestamp::now() + Duration::from_secs(60));
    absent.charge.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let succeeded = To::Succeeded { provider_reference: "ch_1".to_owned() };
    let all = [
        (absent.clone(), CancelOutcome::Cancelled),
        (admitted(&store, &[waiting()]).await, CancelOutcome::Cancelled),
        (admitted(&store, &[]).await, CancelOutcome::TooLate),
        (admitted(&store, &[waiting(), To::Calling { attempt: 2 }]).await, CancelOutcome::TooLate),
        (admitted(&store, &[unknown()]).await, CancelOutcome::TooLate),
        (admitted(&store, &[unknown(), To::Calling { attempt: 2 }]).await, CancelOutcome::TooLate),
        (admitted(&store, &[succeeded]).await, CancelOutcome::TooLate),
        (admitted(&store, &[To::Declined { code: "no".to_owned() }]).await, CancelOutcome::TooLate),
        (late, CancelOutcome::TooLate),
        (admitted(&store, &[waiting(), To::Cancelled]).await, CancelOutcome::Already),
    ];
    let (asked, expected): (Vec<Job>, Vec<CancelOutcome>) = all.into_iter().unzip();
    let ids: Vec<_> = asked.iter().map(|job| job.charge.payment_id).collect();
    let keys: Vec<ChargeKey> = asked.iter().map(|job| job.charge.key()).collect();
    let before = store.states(&keys).await.unwrap();
    assert_eq!(cancel(&store, &asked).await, expected);
    let after = store.states(&keys).await.unwrap();
    for (id, answer) in ids.iter().zip(&expected) {
        let from = before.get(id).copied().unwrap_or(State::Absent);
        let left = if *answer == CancelOutcome::Cancelled { State::Cancelled } else { from };
        assert_eq!(after[id], left, "{from:?}");
        let step = decide(&from, &Event::CancelRequested);
        let cancels = matches!(step, Step::Insert(To::Cancelled) | Step::Move(To::Cancelled));
        assert_eq!(cancels, *answer == CancelOutcome::Cancelled, "{from:?}");
    }
    // Published with all that the payment's other events state.
    let row = format!(
        "select count(*) from charges where payment_id = '{}' and user_id = '{}' and client_number = '1'
            and service_id = 'power' and amount = 15000 and traceparent = '{}' and expires_at > now()
            and (reason, version, attempt, exposed) = ('cancel_requested', 1, 1, false)
            and decided_at = created_at and provider_reference is null",
        absent.charge.payment_id,
        absent.charge.user_id,
        absent.charge.traceparent.as_ref().unwrap()
    );
    assert_eq!(database.number(&row).await, 1);
    let moved = "select count(*) from charges where status = 'cancelled' and version = 3 and reason = 'cancel_requested'";
    assert_eq!(database.number(moved).await, 2);
    database.end().await;
}

#[tokio::test]
async fn a_repeated_cancel_and_the_work_message_after_it_change_nothing() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let (one, other) = (job("1"), job("1"));
    let asked = [one.clone(), other.clone(), one.clone()];
    assert_eq!(
        cancel(&store, &asked).await,
        [CancelOutcome::Cancelled, CancelOutcome::Cancelled, CancelOutcome::Already]
    );
    assert_eq!(cancel(&store, &asked).await, [CancelOutcome::Already; 3]);
    assert_eq!(admit(&store, &[one, other]).await, [Admission::Already; 2]);
    assert_eq!(
        database.number("select count(*) from charges where status = 'cancelled' and version = 1").await,
        2
    );
    database.end().await;
}

/// Also when both come in one batch, before there is a row to compare with.
#[tokio::test]
async fn a_repeated_cancel_with_another_content_is_set_aside() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let one = job("1");
    let others = [
        Job { charge: Charge { amount: 1, ..one.charge.clone() }, ..one.clone() },
        Job { charge: Charge { service_id: "gas".to_owned(), ..one.charge.clone() }, ..one.clone() },
        Job { charge: Charge { client_number: "2".to_owned(), ..one.charge.clone() }, ..one.clone() },
        Job { charge: Charge { user_id: uuid::Uuid::now_v7(), ..one.charge.clone() }, ..one.clone() },
    ];
    let asked: Vec<Job> = std::iter::once(one.clone()).chain(others).chain([one]).collect();
    let expected =
        |first| [vec![first], vec![CancelOutcome::Parked; 4], vec![CancelOutcome::Already]].concat();
    assert_eq!(cancel(&store, &asked).await, expected(CancelOutcome::Cancelled));
    assert_eq!(cancel(&store, &asked).await, expected(CancelOutcome::Already));
    assert_eq!(database.number("select count(*) from parked where reason like 'differs: %'").await, 4);
    assert_eq!(database.number("select count(*) from charges where amount = 15000").await, 1);
    database.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_and_what_is_another_charge_is_parked_with_the_cancels_or_not_at_all() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let bad = parked(99, "unreadable");
    let mut poison = job("1");
    poison.charge.amount = 0;
    assert!(
        store.cancel(&[&job("1"), &poison], std::slice::from_ref(&bad), parked).await.is_err(),
        "an amount no charge can have"
    );
    let rows = "select (select count(*) from parked) * 100 + count(*) from charges";
    assert_eq!(database.number(rows).await, 0);
    let mut conflicting = admitted(&store, &[waiting()]).await;
    conflicting.charge.amount += 1;
    let good = job("1");
    for expected in [CancelOutcome::Cancelled, CancelOutcome::Already] {
        let asked = [&good, &conflicting];
        let answers = store.cancel(&asked, std::slice::from_ref(&bad), parked).await.unwrap();
        assert_eq!(answers, [expected, CancelOutcome::Parked]);
    }
    assert_eq!(database.number(rows).await, 202, "two parked, the waiting and the cancelled charge");
    let conflict =
        "select count(*) from parked where parked_id = 'topic/1' and reason like '%different charge%'";
    assert_eq!(database.number(conflict).await, 1);
    assert_eq!(database.number("select count(*) from charges where status = 'waiting'").await, 1);
    database.end().await;
}

/// Work messages and cancels of the same payments at the same time: each is either called or cancelled, and
/// both sides agree which.
#[tokio::test]
async fn of_a_cancel_and_the_work_message_one_comes_first() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let (mut called, mut cancelled) = (0, 0);
    // A hundred times, and then until each has come first.
    let mut rounds = 0..1_000;
    while (rounds.start < 100 || called == 0 || cancelled == 0)
        && let Some(round) = rounds.next()
    {
        let all = jobs(8, "1");
        let (admits, cancels) = if round % 2 == 0 {
            tokio::join!(admit(&store, &all), cancel(&store, &all))
        } else {
            // A cancel has more to do: it gets a head start, from nothing to more than it needs, so that each comes first at times.
            let later = async {
                tokio::time::sleep(Duration::from_micros(200) * (round % 100)).await;
                admit(&store, &all).await
            };
            let (cancels, admits) = tokio::join!(cancel(&store, &all), later);
            (admits, cancels)
        };
        for pair in admits.iter().zip(&cancels) {
            match pair {
                (Admission::Calling, CancelOutcome::TooLate) => called += 1,
                (Admission::Already, CancelOutcome::Cancelled) => cancelled += 1,
                disagreement => panic!("{disagreement:?}"),
            }
        }
    }
    let rows = "select count(*) from charges where version = 1 and attempt = 1 and status = ";
    assert_eq!(database.number(&format!("{rows} 'calling'")).await, called);
    assert_eq!(database.number(&format!("{rows} 'cancelled'")).await, cancelled);
    assert!(called > 0 && cancelled > 0, "there was no race: {called} called, {cancelled} cancelled");
    database.end().await;
}

/// The owner of a waiting charge calls it while it is being cancelled.
#[tokio::test]
async fn of_a_cancel_and_the_next_call_one_comes_first() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let (mut called, mut cancelled) = (0, 0);
    for round in 0..100 {
        let job = admitted(&store, &[waiting()]).await;
        let id = job.charge.payment_id;
        let again = Transition {
            payment_id: id,
            user_id: job.charge.user_id,
            from: State::Waiting { attempt: 1 },
            to: To::Calling { attempt: 2 },
            pause: LEASE,
        };
        let (asked, again) = (std::slice::from_ref(&job), std::slice::from_ref(&again));
        let (answers, applied) = if round % 2 == 0 {
            tokio::join!(cancel(&store, asked), store.apply(again))
        } else {
            let (applied, answers) = tokio::join!(store.apply(again), cancel(&store, asked));
            (answers, applied)
        };
        match (answers[0], applied.unwrap().contains(&id)) {
            (CancelOutcome::TooLate, true) => called += 1,
            (CancelOutcome::Cancelled, false) => cancelled += 1,
            disagreement => panic!("{disagreement:?}"),
        }
    }
    let rows = "select count(*) from charges where version = 3 and status = ";
    assert_eq!(database.number(&format!("{rows} 'calling'")).await, called);
    assert_eq!(database.number(&format!("{rows} 'cancelled'")).await, cancelled);
    database.end().await;
}
