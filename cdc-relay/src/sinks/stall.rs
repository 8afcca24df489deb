//! Decides when to give up a Kafka client that neither delivers nor fails. Pure.
//!
//! * While records are in flight and none is acknowledged for the time-out, a new client asks the brokers.
//! * Unreachable brokers are waited for. Brokers that answer, and still acknowledge nothing, mean that the client is broken:
//!   the session ends, and a new one emits again all that was not acknowledged.
//! * Each time in a row the time-out doubles, since brokers that are short of replicas look the same.
//!
//! Why: brokers that are starting may answer a metadata request with no broker at all. A client that receives such an answer
//! forgets all brokers, the bootstrap servers included, and never connects again (librdkafka issue 5301; all versions since
//! 2.12). With `message.timeout.ms=0` it reports nothing, and would hold its records, and the slot, for ever.

use std::time::{Duration, Instant};

const ACK_TIMEOUT: Duration = Duration::from_secs(15);
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Clients take a while to notice that brokers came back.
const BROKERS_BACK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// A new client should ask the brokers whether they answer.
    Probe,
    GiveUp,
}

#[derive(Debug)]
pub struct Stall {
    since: Instant,
    probed_at: Option<Instant>,
    timeout: Duration,
}

impl Stall {
    /// `before`: how many sessions in a row were given up.
    pub fn new(now: Instant, before: u32) -> Stall {
        let timeout = ACK_TIMEOUT.saturating_mul(2u32.saturating_pow(before)).min(ACK_TIMEOUT_MAX);
        Stall { since: now, probed_at: None, timeout }
    }

    /// Kafka acknowledged a record, or nothing is in flight.
    pub fn acknowledged(&mut self, now: Instant) {
        (self.since, self.probed_at) = (now, None);
    }

    pub fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// `answered_at`: when the brokers last answered a new client.
    pub fn judge(&mut self, now: Instant, answered_at: Option<Instant>) -> Verdict {
        if self.lasted(now) < self.timeout {
            return Verdict::Fine;
        }
        match self.probed_at {
            Some(probed)
                if answered_at.is_some_and(|at| at >= probed && now >= at + BROKERS_BACK_TIMEOUT) =>
            {
                Verdict::GiveUp
            }
            Some(probed) if answered_at.is_some_and(|at| at >= probed) || now < probed + ACK_TIMEOUT => {
                Verdict::Fine
            }
            Some(_) | None => {
                self.probed_at = Some(now);
                Verdict::Probe
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn brokers_that_are_away_are_waited_for() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        assert_eq!(stall.judge(began + ACK_TIMEOUT - SECOND, None), Verdict::Fine);
        assert_eq!(stall.judge(began + ACK_TIMEOUT, None), Verdict::Probe);
        assert_eq!(stall.judge(began + ACK_TIMEOUT + SECOND, None), Verdict::Fine);
        assert_eq!(stall.judge(began + ACK_TIMEOUT * 2, None), Verdict::Probe);
        assert_eq!(stall.judge(began + ACK_TIMEOUT * 2 + SECOND, None), Verdict::Fine);
    }

    #[test]
    fn a_client_that_delivers_nothing_to_brokers_that_answer_is_given_up() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        let (asked, answered) = (began + ACK_TIMEOUT, began + ACK_TIMEOUT + SECOND);
        assert_eq!(stall.judge(asked, None), Verdict::Probe);
        assert_eq!(stall.judge(answered, Some(answered)), Verdict::Fine);
        assert_eq!(stall.judge(answered + BROKERS_BACK_TIMEOUT, Some(answered)), Verdict::GiveUp);
    }

    #[test]
    fn an_answer_from_before_counts_for_nothing() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        assert_eq!(stall.judge(began + ACK_TIMEOUT, Some(began)), Verdict::Probe);
        assert_eq!(stall.judge(began + ACK_TIMEOUT + BROKERS_BACK_TIMEOUT, Some(began)), Verdict::Fine);
    }

    #[test]
    fn an_acknowledgement_while_the_brokers_are_asked_ends_the_stall() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        let asked = began + ACK_TIMEOUT;
        assert_eq!(stall.judge(asked, None), Verdict::Probe);
        stall.acknowledged(asked + SECOND);
        assert_eq!(stall.judge(asked + BROKERS_BACK_TIMEOUT + SECOND, Some(asked)), Verdict::Fine);
    }

    #[test]
    fn each_time_in_a_row_takes_twice_as_long_up_to_a_bound() {
        let began = Instant::now();
        assert_eq!(Stall::new(began, 1).judge(began + ACK_TIMEOUT, None), Verdict::Fine);
        assert_eq!(Stall::new(began, 1).judge(began + ACK_TIMEOUT * 2, None), Verdict::Probe);
        assert_eq!(Stall::new(began, 99).judge(began + ACK_TIMEOUT_MAX, None), Verdict::Probe);
    }
}
