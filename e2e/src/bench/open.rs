//! The open loop: payments are asked for at given moments, however the last ones fare.
//!
//! Latency counts from the moment a payment was meant to be asked for, so a system that stalls cannot hide it
//! by slowing its clients down (coordinated omission).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::caller::Caller;
use super::closed::Load;
use super::cpu::{CpuTime, Meter};
use super::latency::{Latencies, Summary};

/// Connections made before the start; more are made when all are in use.
const CONNECTIONS: usize = 32;

pub struct OpenLoop {
    pub rate: u32,
    /// From the moment it was meant to be asked for until the 201.
    pub accept: Summary,
    /// From the 201 until the terminal event was received.
    pub settle: Summary,
    pub cpu: CpuTime,
}

struct Shared {
    load: Load,
    idle: Mutex<Vec<Caller>>,
    accept: Latencies,
    settle: Latencies,
}

impl Shared {
    /// The connection used last, if it is still open.
    fn idle(&self) -> Option<Caller> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|caller| !caller.is_closed())
    }
}

/// Asks for `rate` payments per second for `time`, and waits until all have ended.
pub async fn run(load: &Load, meter: &Meter, rate: u32, time: Duration) -> Result<OpenLoop> {
    ensure!(rate > 0, "a rate is payments per second, at least 1");
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(Caller::connect(&load.address).await?);
    }
    let shared = Arc::new(Shared {
        load: load.clone(),
        idle: Mutex::new(idle),
        accept: Latencies::new()?,
        settle: Latencies::new()?,
    });
    let count = (f64::from(rate) * time.as_secs_f64()) as u32;
    let mut random = SmallRng::from_os_rng();
    let mut tasks = JoinSet::new();
    let before = meter.sample();
    let mut moments = pace(rate, count)?;
    while let Some(intended) = moments.recv().await {
        tasks.spawn(payment(shared.clone(), load.users.pick(&mut random), intended));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("payment")??;
    }
    let cpu = meter.sample().since(&before);
    Ok(OpenLoop { rate, accept: shared.accept.summary(), settle: shared.settle.summary(), cpu })
}

/// The moments at which payments are meant to be asked for, each sent when it has come. A thread: the
/// runtime's timers round to the next millisecond.
pub fn pace(rate: u32, count: u32) -> Result<mpsc::UnboundedReceiver<Instant>> {
    let (sender, moments) = mpsc::unbounded_channel();
    let tick = move || {
        let start = Instant::now();
        for nth in 0..count {
            let intended = start + Duration::from_secs_f64(f64::from(nth) / f64::from(rate));
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            if sender.send(intended).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("pace".into()).spawn(tick)?;
    Ok(moments)
}

async fn payment(shared: Arc<Shared>, user_id: uuid::Uuid, intended: Instant) -> Result<()> {
    let mut caller = match shared.idle() {
        Some(caller) => caller,
        None => Caller::connect(&shared.load.address).await?,
    };
    let payment_id = caller.pay(user_id).await?;
    let accepted = Instant::now();
    shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(caller);
    shared.accept.record(accepted.duration_since(intended));
    let ending = shared.load.endings.of(payment_id).await?;
    shared.settle.record(ending.at.saturating_duration_since(accepted));
    Ok(())
}
