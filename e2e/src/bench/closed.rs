//! The closed loop: every client has one payment under way, from the request to its end, then the next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

use super::caller::{Address, Caller};
use super::cpu::{CpuTime, Meter};
use super::endings::Endings;
use super::latency::{Latencies, Summary};
use super::users::Users;

/// Not measured: clients start together, and batches need a moment to find their size.
const WARM_UP: Duration = Duration::from_secs(2);

/// The parts of a load.
#[derive(Clone)]
pub struct Load {
    pub address: Address,
    pub users: Users,
    pub endings: Arc<Endings>,
}

/// The figures of the window.
pub struct ClosedLoop {
    pub settled: u64,
    pub seconds: f64,
    /// Warm-up and run-out included.
    pub ended: BTreeMap<&'static str, u64>,
    pub accept: Summary,
    pub settle: Summary,
    pub cpu: CpuTime,
}

struct Shared {
    stop: AtomicBool,
    measuring: AtomicBool,
    ended: Mutex<BTreeMap<&'static str, u64>>,
    accept: Latencies,
    settle: Latencies,
}

/// Runs `clients` for `window` and waits until all they began has ended.
pub async fn run(load: &Load, meter: &Meter, clients: usize, window: Duration) -> Result<ClosedLoop> {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        measuring: AtomicBool::new(false),
        ended: Mutex::default(),
        accept: Latencies::new()?,
        settle: Latencies::new()?,
    });
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let caller = Caller::connect(&load.address).await?;
        tasks.spawn(client(load.clone(), caller, shared.clone()));
    }
    unless_one_fails(&mut tasks, WARM_UP).await?;
    shared.measuring.store(true, Ordering::Relaxed);
    let (before, began) = (meter.sample(), Instant::now());
    unless_one_fails(&mut tasks, window).await?;
    shared.measuring.store(false, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    let cpu = meter.sample().since(&before);
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.context("client")??;
    }
    let settle = shared.settle.summary();
    let ended = shared.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(ClosedLoop { settled: settle.count, seconds, ended, accept: shared.accept.summary(), settle, cpu })
}

/// Lets them work; clients end before they are stopped only by failing.
async fn unless_one_fails(tasks: &mut JoinSet<Result<()>>, time: Duration) -> Result<()> {
    match tokio::time::timeout(time, tasks.join_next()).await {
        Ok(Some(ended)) => ended.context("client")?,
        Ok(None) | Err(_) => Ok(()),
    }
}

async fn client(load: Load, mut caller: Caller, shared: Arc<Shared>) -> Result<()> {
    let mut random = SmallRng::from_os_rng();
    while !shared.stop.load(Ordering::Relaxed) {
        let user_id = load.users.pick(&mut random);
        let asked = Instant::now();
        let payment_id = caller.pay(user_id).await?;
        let accepted = Instant::now();
        let ending = load.endings.of(payment_id).await?;
        *shared
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(ending.event.as_str())
            .or_default() += 1;
        if shared.measuring.load(Ordering::Relaxed) {
            shared.accept.record(accepted.duration_since(asked));
            shared.settle.record(ending.at.saturating_duration_since(accepted));
        }
    }
    Ok(())
}
