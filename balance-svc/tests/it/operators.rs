//! Acts of operators on parked events: applied again by the code that consumes them, once, or put away.

use balance_svc::events::Ledger as Handler;
use balance_svc::metrics::Metrics;
use saga::contract::PAYMENT_RESULT_TOPIC;
use saga::parked::acts::{Act, ActAnswer, ActRecord, ActRequest, act};
use saga::parked::open::OpenMessages;
use saga::parked::{self, Parked};
use serde_json::json;
use uuid::Uuid;

use crate::service::event;
use crate::{Ledger, initiated};

const SUCCEEDED: &str = "payment.result.succeeded.v1";
/// As in the golden event.
const AMOUNT: i64 = 15_000;

struct Operator {
    ledger: Ledger,
    handler: Handler,
}

impl Operator {
    async fn new() -> Self {
        let ledger = Ledger::new().await;
        let handler = Handler::new(ledger.router.clone(), &Metrics::register().unwrap());
        Self { ledger, handler }
    }

    /// Parks a result of this payment, as if its hold had been missing.
    async fn park(&self, user: Uuid, payment: Uuid, replaced: (&str, &str)) -> String {
        let (_, kind, body) = event(PAYMENT_RESULT_TOPIC, SUCCEEDED, user, payment);
        let parked_id = format!("{PAYMENT_RESULT_TOPIC}/0/{}", Uuid::new_v4());
        let message = Parked {
            parked_id: parked_id.clone(),
            source: PAYMENT_RESULT_TOPIC.into(),
            message_key: Some(user.to_string()),
            event_type: Some(kind.into()),
            headers: json!({"ce_type": kind}),
            body: body.replace(replaced.0, replaced.1).into_bytes(),
            reason: "missing: hold".into(),
        };
        let mut client = self.ledger.pool.get().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        parked::insert(&transaction, &[message]).await.unwrap();
        transaction.commit().await.unwrap();
        parked_id
    }

    async fn act(&self, act_: Act, parked_id: &str, operator: &str) -> ActAnswer {
        let request = ActRequest {
            act: act_,
            parked_id: parked_id.into(),
            operator: operator.into(),
            reason: "a test".into(),
        };
        act(&self.ledger.pool, &self.handler, &request).await.unwrap()
    }

    /// The record of an act that was done now.
    async fn done(&self, act: Act, parked_id: &str, operator: &str) -> ActRecord {
        match self.act(act, parked_id, operator).await {
            ActAnswer::Done(record) => record,
            answer => panic!("{answer:?}"),
        }
    }

    async fn refused(&self, act: Act, parked_id: &str, why: &str) {
        match self.act(act, parked_id, "alice").await {
            ActAnswer::Refused(text) => assert!(text.contains(why), "{text}"),
            answer => panic!("{answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_result_whose_hold_came_late_is_retried_once() {
    let operator = Operator::new().await;
    let ledger = &operator.ledger;
    let (user, payment) = (ledger.user_with(AMOUNT).await, Uuid::now_v7());
    let parked_id = operator.park(user, payment, ("", "")).await;
    operator.refused(Act::Retried, &parked_id, "missing: hold of payment").await;
    assert_eq!(ledger.count("select count(*) from parked_acts").await, 0, "what is refused is no act");
    ledger.apply(&[initiated(user, payment, AMOUNT)]).await.unwrap();
    assert_eq!(ledger.balance(user).await, (0, AMOUNT));

    // The payment waits for it, so it cannot be put away; and trying to moved nothing.
    operator.refused(Act::Dismissed, &parked_id, "can be applied").await;
    assert_eq!(ledger.balance(user).await, (0, AMOUNT));
    let record = operator.done(Act::Retried, &parked_id, "alice").await;
    assert_eq!((record.operator.as_str(), record.outcome.as_str()), ("alice", "applied"));
    assert_eq!(ledger.balance(user).await, (0, 0));
    for who in ["alice", "bob"] {
        let again = operator.act(Act::Retried, &parked_id, who);
        let (answer, waited) = ledger.harness.barriers(again).await.unwrap();
        // The commit of the act may be on no standby yet.
        assert_eq!((answer, waited), (ActAnswer::Repeated(record.clone()), 1));
    }
    assert_eq!(ledger.balance(user).await, (0, 0));
    assert_eq!(ledger.count("select count(*) from ledger where kind = 'capture'").await, 1);
    assert_eq!(ledger.count("select count(*) from parked").await, 1, "the message stays, and is parked once");
    operator.ledger.finish().await;
}

#[tokio::test]
async fn a_result_of_another_amount_is_never_applied_and_may_be_put_away() {
    let operator = Operator::new().await;
    let ledger = &operator.ledger;
    let (user, payment) = (ledger.user_with(AMOUNT).await, Uuid::now_v7());
    ledger.apply(&[initiated(user, payment, AMOUNT)]).await.unwrap();
    let parked_id = operator.park(user, payment, ("\"amount\":15000", "\"amount\":1")).await;
    operator.refused(Act::Retried, &parked_id, "differs: ").await;
    let record = operator.done(Act::Dismissed, &parked_id, "alice").await;
    assert!(record.outcome.starts_with("differs: "), "{record:?}");
    assert_eq!(ledger.balance(user).await, (0, AMOUNT), "the hold stays");
    // Putting away is no end: what can be applied later is.
    assert_eq!(operator.act(Act::Dismissed, &parked_id, "bob").await, ActAnswer::Repeated(record));
    operator.refused(Act::Retried, &parked_id, "differs: ").await;
    operator.ledger.finish().await;
}

#[tokio::test]
async fn a_message_is_open_until_an_operator_has_acted() {
    let operator = Operator::new().await;
    let ledger = &operator.ledger;
    let registry = saga::telemetry::registry().unwrap();
    let messages = OpenMessages::register(ledger.pool.clone(), &registry).unwrap();
    let open = async || {
        messages.look().await.unwrap();
        let family = registry.gather().into_iter().find(|family| family.name() == "parked_messages_open");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    assert_eq!(open().await, 0.0);
    let (user, payment) = (ledger.user_with(2 * AMOUNT).await, Uuid::now_v7());
    let (first, second) =
        (operator.park(user, payment, ("", "")).await, operator.park(user, Uuid::now_v7(), ("", "")).await);
    assert_eq!(open().await, 2.0);
    ledger.apply(&[initiated(user, payment, AMOUNT)]).await.unwrap();
    operator.done(Act::Retried, &first, "alice").await;
    assert_eq!(open().await, 1.0);
    operator.done(Act::Dismissed, &second, "alice").await;
    assert_eq!(open().await, 0.0);
    operator.ledger.finish().await;
}

#[tokio::test]
async fn a_duplicate_is_dealt_with_without_an_effect() {
    let operator = Operator::new().await;
    let ledger = &operator.ledger;
    let (user, payment) = (ledger.user_with(AMOUNT).await, Uuid::now_v7());
    ledger.apply(&[initiated(user, payment, AMOUNT)]).await.unwrap();
    let (first, second) =
        (operator.park(user, payment, ("", "")).await, operator.park(user, payment, ("", "")).await);
    assert_eq!(operator.done(Act::Retried, &first, "alice").await.outcome, "applied");
    assert_eq!(operator.done(Act::Retried, &second, "alice").await.outcome, "already");
    assert_eq!(operator.done(Act::Dismissed, &second, "alice").await.outcome, "already");
    assert_eq!(ledger.balance(user).await, (0, 0));
    assert_eq!(operator.act(Act::Retried, "PaymentResultTopic/0/none", "alice").await, ActAnswer::Unknown);
    operator.ledger.finish().await;
}

#[tokio::test]
async fn many_at_once_apply_a_message_once() {
    let operator = Operator::new().await;
    let ledger = &operator.ledger;
    let (user, payment) = (ledger.user_with(2 * AMOUNT).await, Uuid::now_v7());
    ledger.apply(&[initiated(user, payment, AMOUNT)]).await.unwrap();
    let parked_id = operator.park(user, payment, ("", "")).await;
    let request = |operator: &str| ActRequest {
        act: Act::Retried,
        parked_id: parked_id.clone(),
        operator: operator.into(),
        reason: "a test".into(),
    };
    let requests: Vec<ActRequest> = ["a", "b", "c", "d"].map(request).into();
    let acts = requests.iter().map(|request| act(&ledger.pool, &operator.handler, request));
    let answers = futures_util::future::join_all(acts).await;
    let done = answers.iter().filter(|answer| matches!(answer, Ok(ActAnswer::Done(_)))).count();
    assert_eq!(done, 1, "{answers:?}");
    assert_eq!(ledger.balance(user).await, (AMOUNT, 0));
    assert_eq!(ledger.count("select count(*) from parked_acts").await, 1);
    operator.ledger.finish().await;
}
