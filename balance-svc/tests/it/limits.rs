//! The largest balance: a deposit beyond it is refused for good, and nothing else can ever reach it.

use futures_util::future::join_all;
use saga::contract::{AMOUNT_MAX, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::service::{ADMIN_TOKEN, AMOUNT, Service, event};

impl Service {
    /// Status and body of `POST /deposits`.
    async fn deposit(&self, user: Uuid, amount: i64, key: &str) -> (u16, Value) {
        let body = json!({"user_id": user, "amount": amount, "idempotency_key": key});
        saga::http::install_provider();
        let request = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = request.post(format!("http://{}/deposits", self.admin)).bearer_auth(ADMIN_TOKEN);
        let reply = request.json(&body).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap())
    }
}

/// Held and captured, or held and released: in every state the account is at its bound, and a further deposit is
/// refused as long as it would not fit.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_at_its_bound_refuses_a_deposit_and_nothing_else() {
    let service = Service::new().await;
    let user = Uuid::now_v7();
    assert_eq!(service.deposit(user, AMOUNT_MAX, "all").await.0, 201);
    let refused = async |key| {
        let (status, problem) = service.deposit(user, 1, key).await;
        assert_eq!((status, &problem["type"]), (422, &json!("urn:coro:problem:balance-limit")), "{problem}");
    };
    refused("more").await;
    // The same request gets the same answer, and an earlier one is replayed as it was.
    refused("more").await;
    assert_eq!(service.deposit(user, AMOUNT_MAX, "all").await.0, 201);
    let (released, captured) = (Uuid::now_v7(), Uuid::now_v7());
    service.produce(user, &event(PAYMENT_TOPIC, "payment.initiated.v1", user, released));
    service.until("select held from accounts", AMOUNT).await;
    refused("while held").await;
    service.produce(user, &event(PAYMENT_RESULT_TOPIC, "payment.result.declined.v1", user, released));
    service.until("select available from accounts", AMOUNT_MAX).await;
    service.produce(user, &event(PAYMENT_TOPIC, "payment.initiated.v1", user, captured));
    service.produce(user, &event(PAYMENT_RESULT_TOPIC, "payment.result.succeeded.v1", user, captured));
    service.until("select count(*) from ledger where kind = 'capture'", 1).await;
    // There is room again, for exactly what was captured.
    assert_eq!(service.deposit(user, AMOUNT + 1, "too much").await.0, 422);
    assert_eq!(service.deposit(user, AMOUNT, "as much").await.0, 201);
    assert_eq!(service.ledger.balance(user).await, (AMOUNT_MAX, 0));
    let deposits = "select count(*) from ledger where kind = 'deposit'";
    assert_eq!(service.ledger.count(deposits).await, 2, "a refused deposit leaves no row");
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deposits_at_the_same_time_do_not_pass_the_bound_together() {
    let service = Service::new().await;
    let user = Uuid::now_v7();
    let third = AMOUNT_MAX / 3;
    let keys: Vec<String> = (0..6).map(|key| key.to_string()).collect();
    let answers = join_all(keys.iter().map(|key| service.deposit(user, third, key))).await;
    let count = |status| answers.iter().filter(|(found, _)| *found == status).count();
    assert_eq!((count(201), count(422)), (3, 3));
    assert_eq!(service.ledger.balance(user).await, (3 * third, 0));
    service.end().await;
}

/// Also of the amounts that leave the database in events.
#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_readers_would_round_enters_no_ledger() {
    let service = Service::new().await;
    let (user, payment) = (service.ledger.user_with(1).await, Uuid::now_v7());
    let (topic, kind, body) = event(PAYMENT_TOPIC, "payment.initiated.v1", user, payment);
    let body = body.replace("15000", &(AMOUNT_MAX + 1).to_string());
    service.produce(user, &(topic, kind, body));
    service.until("select count(*) from parked", 1).await;
    assert_eq!(service.ledger.count("select count(*) from ledger where kind = 'rejection'").await, 0);
    service.stop().await;
}

#[tokio::test]
async fn the_bound_is_a_constraint_of_the_table() {
    let ledger = crate::Ledger::new().await;
    let user = ledger.user_with(AMOUNT_MAX).await;
    let client = ledger.pool.get().await.unwrap();
    for beyond in
        ["available = available + 1", "held = held + 1", "available = 9223372036854775807, held = 1"]
    {
        let update = format!("update accounts set {beyond} where user_id = '{user}'");
        let error = client.batch_execute(&update).await.expect_err(beyond);
        let constraint = error.as_db_error().unwrap().constraint();
        assert_eq!(constraint, Some("accounts_balance_max"), "{beyond}");
    }
    drop(client);
    ledger.finish().await;
}
