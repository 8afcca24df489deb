//! The back-off of the services: pauses between the tries of work that must succeed.
//!
//! * A pause grows from 20 milliseconds to a maximum, with jitter.
//! * The pauses never end: only success or shutdown ends the tries.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Pause after the first try.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// Pauses of at most `max`, without end.
pub fn unlimited(max: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}
