//! When a Kafka client is given up that neither delivers nor fails: pure.
//!
//! librdkafka mends what breaks, with one exception: brokers that are starting may answer a request for metadata with
//! no broker at all, and a client that hears this forgets all it knew, the bootstrap servers included, and never
//! connects again (librdkafka issue 5301; all versions since 2.12). With `message.timeout.ms=0` it reports nothing, and
//! would hold its records, and the slot, for ever. So if records are under way and none has
//! landed for `patience`, a new client asks the brokers. Brokers that are away are waited for. Brokers that answer
//! and still take nothing mean that our client is the trouble: the session ends, and a new one emits again what was
//! not acknowledged. Each time in a row it is given twice as long, since brokers that are short of replicas look the
//! same.

use std::time::{Duration, Instant};

const ACK_TIMEOUT: Duration = Duration::from_secs(15);
const PATIENCE_MOST: Duration = Duration::from_secs(300);
/// After brokers came back their clients take a while to notice.
const BROKERS_BACK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// A new client should ask the brokers.
    Ask,
    GiveUp,
}

#[derive(Debug)]
pub struct Stall {
    since: Instant,
    asked: Option<Instant>,
    patience: Duration,
}

impl Stall {
    /// `before`: how many sessions in a row were given up.
    pub fn new(now: Instant, before: u32) -> Stall {
        let patience = ACK_TIMEOUT.saturating_mul(2u32.saturating_pow(before)).min(PATIENCE_MOST);
        Stall { since: now, asked: None, patience }
    }

    /// Something landed, or nothing is under way.
    pub fn moved(&mut self, now: Instant) {
        (self.since, self.asked) = (now, None);
    }

    pub fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// `answered`: when the brokers last answered a new client.
    pub fn judge(&mut self, now: Instant, answered: Option<Instant>) -> Verdict {
        if self.lasted(now) < self.patience {
            return Verdict::Fine;
        }
        match self.asked {
            Some(asked) if answered.is_some_and(|at| at >= asked && now >= at + BROKERS_BACK_TIMEOUT) => {
                Verdict::GiveUp
            }
            Some(asked) if answered.is_some_and(|at| at >= asked) || now < asked + ACK_TIMEOUT => {
                Verdict::Fine
            }
            Some(_) | None => {
                self.asked = Some(now);
                Verdict::Ask
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
        assert_eq!(stall.judge(began + ACK_TIMEOUT, None), Verdict::Ask);
        assert_eq!(stall.judge(began + ACK_TIMEOUT + SECOND, None), Verdict::Fine);
        assert_eq!(stall.judge(began + ACK_TIMEOUT * 2, None), Verdict::Ask);
        assert_eq!(stall.judge(began + ACK_TIMEOUT * 2 + SECOND, None), Verdict::Fine);
    }

    #[test]
    fn a_client_that_delivers_nothing_to_brokers_that_answer_is_given_up() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        let (asked, answered) = (began + ACK_TIMEOUT, began + ACK_TIMEOUT + SECOND);
        assert_eq!(stall.judge(asked, None), Verdict::Ask);
        assert_eq!(stall.judge(answered, Some(answered)), Verdict::Fine);
        assert_eq!(stall.judge(answered + BROKERS_BACK_TIMEOUT, Some(answered)), Verdict::GiveUp);
    }

    #[test]
    fn an_answer_from_before_counts_for_nothing() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        assert_eq!(stall.judge(began + ACK_TIMEOUT, Some(began)), Verdict::Ask);
        assert_eq!(stall.judge(began + ACK_TIMEOUT + BROKERS_BACK_TIMEOUT, Some(began)), Verdict::Fine);
    }

    #[test]
    fn what_lands_while_the_brokers_are_asked_ends_the_matter() {
        let began = Instant::now();
        let mut stall = Stall::new(began, 0);
        let asked = began + ACK_TIMEOUT;
        assert_eq!(stall.judge(asked, None), Verdict::Ask);
        stall.moved(asked + SECOND);
        assert_eq!(stall.judge(asked + BROKERS_BACK_TIMEOUT + SECOND, Some(asked)), Verdict::Fine);
    }

    #[test]
    fn each_time_in_a_row_takes_twice_as_long_up_to_a_bound() {
        let began = Instant::now();
        assert_eq!(Stall::new(began, 1).judge(began + ACK_TIMEOUT, None), Verdict::Fine);
        assert_eq!(Stall::new(began, 1).judge(began + ACK_TIMEOUT * 2, None), Verdict::Ask);
        assert_eq!(Stall::new(began, 99).judge(began + PATIENCE_MOST, None), Verdict::Ask);
    }
}
