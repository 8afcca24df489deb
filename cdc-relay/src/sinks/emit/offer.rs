//! Offers a record to a producer whose queue may be full.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sinks::kafka::Sent;

/// How long the producer's queue may stay full before the session starts over. The server gets no status meanwhile, so it is less than
/// `wal_sender_timeout` and the second since the last one.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(4);

/// Offers the same record until the producer takes it: the next one must not overtake it.
pub fn offer(mut send: impl FnMut() -> Result<Sent>) -> Result<()> {
    let mut full_since = None;
    while send()? == Sent::Full {
        if full_since.get_or_insert_with(Instant::now).elapsed() > QUEUE_FULL_TIMEOUT {
            bail!("Kafka's queue stays full");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
