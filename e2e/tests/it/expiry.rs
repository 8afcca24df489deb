//! A payment that was not called in time ends without a call, and its money comes back.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coroctl::client::Client;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT, binary, get};

/// Another payments-svc of the same stack, whose payments expire after a second. Any number may run.
struct Hasty {
    process: Child,
    client: Client,
}

impl Hasty {
    async fn new(harness: &Harness) -> Hasty {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (public, admin) = (free(), free());
        let passwords = sql::Passwords::from_env().unwrap();
        let admin_url = &harness.stack.postgres_admin_url;
        let database =
            sql::database_url(admin_url, "payments", "payments_svc", passwords.of("payments_svc").unwrap())
                .unwrap();
        let process = Command::new(binary("payments-svc"))
            .args([format!("--listen-addr={public}"), format!("--admin-addr={admin}")])
            .args(["--payment-ttl-seconds=1", "--database-url", &database])
            .args(["--kafka-brokers", &harness.stack.kafka_brokers])
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut stack = harness.stack.clone();
        stack.payments_url = format!("http://{public}");
        let began = Instant::now();
        while get(format!("http://{admin}/ready")).await.is_err() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Hasty { process, client: Client::new(&stack).unwrap() }
    }

    /// A payment that was authorized, and its deadline over: on a busy machine it may have expired at once.
    async fn overdue(&self, harness: &Harness, user: Uuid) -> Uuid {
        let payment_id = self.client.pay(user, "0812", 400).await.unwrap();
        let payment = harness.until(user, payment_id, |payment| payment["status"] != "initiated").await;
        let expires_at: Timestamp = payment["expires_at"].as_str().unwrap().parse().unwrap();
        let left = Duration::try_from(expires_at.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(left + Duration::from_millis(50)).await;
        payment_id
    }

    /// As it is asked to: it leaves its group at once.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

/// A payment expires for whatever reason it was not called.
#[tokio::test]
async fn a_payment_that_cannot_be_called_in_time_expires_and_its_money_comes_back() {
    let harness = Harness::alone().await;
    let hasty = Hasty::new(&harness).await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let mut overdue = Vec::new();
    for away in ["processor-svc", "gateway-sim"] {
        harness.cargo_stack("stop", away).await;
        let payment_id = hasty.overdue(&harness, user).await;
        if away == "gateway-sim" {
            // Nobody else's turn is needed: the processor knows the time.
            harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        }
        harness.cargo_stack("start", away).await;
        overdue.push(payment_id);
    }
    hasty.end();
    for payment_id in overdue {
        let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        assert_eq!(
            (&payment["status"], &payment["reason"]),
            (&"failed".into(), &"expired:deadline_passed".into())
        );
        assert_eq!(harness.client.gateway_charge(payment_id).await.unwrap(), None, "it was never called");
    }
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000, 0));
    harness.adds_up().await;
}
