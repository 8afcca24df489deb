//! A payment that was not called in time ends without a call, and its money comes back.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coroctl::client::Client;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::world::{WAIT_TIMEOUT, World, binary};

/// Another payments-svc of the same stack, whose payments expire after a second. Any number may run.
struct Hasty {
    process: Child,
    client: Client,
}

impl Hasty {
    async fn new(world: &World) -> Hasty {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (public, admin) = (free(), free());
        let passwords = sql::Passwords::from_env().unwrap();
        let admin_url = &world.stack.postgres_admin_url;
        let database =
            sql::database_url(admin_url, "payments", "payments_svc", passwords.of("payments_svc").unwrap())
                .unwrap();
        let process = Command::new(binary("payments-svc"))
            .args([format!("--listen-addr={public}"), format!("--admin-addr={admin}")])
            .args(["--payment-ttl-seconds=1", "--database-url", &database])
            .args(["--kafka-brokers", &world.stack.kafka_brokers])
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut stack = world.stack.clone();
        stack.payments_url = format!("http://{public}");
        let began = Instant::now();
        while reqwest::get(format!("http://{admin}/ready")).await.is_err() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Hasty { process, client: Client::new(&stack).unwrap() }
    }

    /// A payment that is authorized, and its deadline over.
    async fn overdue(&self, world: &World, user: Uuid) -> Uuid {
        let payment_id = self.client.pay(user, "0812", 400).await.unwrap();
        let payment = world.client.reached(user, payment_id, "authorized", WAIT_TIMEOUT).await.unwrap();
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

/// Whatever kept it from being called.
#[tokio::test]
async fn a_payment_that_cannot_be_called_in_time_expires_and_its_money_comes_back() {
    let world = World::alone().await;
    let hasty = Hasty::new(&world).await;
    let user = world.client.user_with(1_000).await.unwrap();
    let mut overdue = Vec::new();
    for away in ["processor-svc", "gateway-sim"] {
        world.cargo_stack("stop", away).await;
        let payment_id = hasty.overdue(&world, user).await;
        if away == "gateway-sim" {
            // Nobody else's turn is needed: the processor knows the time.
            world.client.ended(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        }
        world.cargo_stack("start", away).await;
        overdue.push(payment_id);
    }
    hasty.end();
    for payment_id in overdue {
        let payment = world.client.ended(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        assert_eq!(
            (&payment["status"], &payment["reason"]),
            (&"failed".into(), &"expired:deadline_passed".into())
        );
        assert_eq!(world.client.gateway_charge(payment_id).await.unwrap(), None, "it was never called");
    }
    assert_eq!(world.client.balance(user).await.unwrap(), (1_000, 0));
    world.adds_up().await;
}
