//! Carries out a move: observes both shards, takes the decision of [`moves`](super::moves), makes one step, and begins again.
//!
//! * It keeps nothing that a move needs: whoever is killed leaves two records, and another mover goes on from them.
//! * A session lock on each shard keeps a second mover away until the first one's statements have ended.
//! * Every step is one transaction on one shard, with the guards that [`Step`] names. Each commit waits for the synchronous standby,
//!   and the first on each shard comes before anything that was read there counts.
//! * Between fence and grant it asks every [`POLL_INTERVAL`]. A fence that was lifted is put up again after a pause that grows.
//! * An error ends it, but not under the fence ([`reconnect`]).

mod compare;
pub mod conditions_read;
mod copy;
mod execute;
pub mod observe;
mod reconnect;
pub mod record;
mod relay_listener;
mod side;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use reqwest::Client;
use tokio::time::{sleep, timeout};

pub(super) use self::execute::{drop_publication, drop_subscription};
use self::reconnect::in_time;
pub use self::relay_listener::RelayListener;
pub use self::side::{Shard, ShardUrl};
use super::conditions::Refusal;
use super::moves::{AtSource, AtTarget, Contradiction, Drain, FENCE_MAX, Outcome, Step, next};
use record::Move;

/// How often target, relay and transactions are asked for while the fence is up.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// After so many fences that were lifted, or could not be put up, a person decides: the copy goes on, and `resume` tries again.
const POSTPONED_MAX: u32 = 20;

/// A move under way.
pub struct Mover {
    source: Shard,
    target: Shard,
    moved: Move,
    progress: Progress,
    last: Option<Step>,
    relay: RelayListener,
    http: Client,
    /// What is printed, a line at a time.
    report: fn(&str),
}

/// What a mover knows besides the records. All of it is found again after a kill.
#[derive(Default)]
struct Progress {
    /// Since when nobody has owned the buckets. Of a fence that another mover has put up: since this one found it.
    fenced_at: Option<Instant>,
    /// Under the fence: since when something has failed, and how often.
    fails_since: Option<Instant>,
    failures: u32,
    /// Virtual xids and processes of the transactions that ran when the fence was up.
    listed: Option<Vec<(String, i32)>>,
    transactions_ended: bool,
    lsn: Option<String>,
    /// Counts and checksums agreed.
    has_compared: bool,
    /// The walks through the tables: the next block of each, or done.
    source_walk: Walk,
    target_walk: Walk,
    postponed: u32,
    /// When the state of the copy was printed last.
    reported_at: Option<Instant>,
}

/// A walk through the tables of a move, from block to block, that deletes rows of its buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Walk {
    #[default]
    Begins,
    /// The table by its place in the list, and its next block.
    At(usize, i64),
    Done,
}

impl Mover {
    /// Locks both shards for this mover, and makes a commit on each.
    ///
    /// # Errors
    /// When another mover works on one of them, or a shard does not answer.
    pub async fn new(
        source: Shard,
        target: Shard,
        moved: Move,
        relay: RelayListener,
        report: fn(&str),
    ) -> Result<Self> {
        for shard in [&source, &target] {
            shard.lock().await?;
        }
        let http = relay_listener::client()?;
        Ok(Self { source, target, moved, progress: Progress::default(), last: None, relay, http, report })
    }

    /// Goes on until the move has ended.
    ///
    /// # Errors
    /// When a shard does not answer, a person must look, or the fence had to be lifted too often. The move can be resumed.
    /// [`is_fenced`](Self::is_fenced) says whether anybody owns the buckets meanwhile.
    pub async fn run(&mut self) -> Result<Outcome> {
        loop {
            match Box::pin(self.advance()).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(error) if self.is_fenced() && !matches!(self.last, Some(Step::Refuse(_))) => {
                    self.go_on_after(error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Nobody owns the buckets, for all that this mover knows.
    pub fn is_fenced(&self) -> bool {
        self.progress.fenced_at.is_some()
    }

    /// Makes the next step, or waits a while where the step is to wait. Returns the outcome once the move has ended.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn advance(&mut self) -> Result<Option<Outcome>> {
        let observed = Box::pin(in_time(self.observe())).await?;
        let step = match next(&observed) {
            Step::Grant if !self.may_grant(observed.fenced_for).await => Step::Bar,
            step => step,
        };
        // Where the target is barred nothing is handed over by it.
        if step == Step::Fence && observed.target == AtTarget::Waits && !self.may_fence().await? {
            return Ok(None);
        }
        if self.last != Some(step) {
            (self.report)(describe(step));
            self.last = Some(step);
        }
        match step {
            Step::Done(outcome) => return Ok(Some(outcome)),
            Step::Refuse(contradiction) => bail!(
                "{}. Nothing was changed. See `coroctl shard list`, and find out which shard was restored or changed by hand",
                explain(contradiction)
            ),
            Step::AwaitCopy => self.await_copy().await?,
            Step::AwaitTransactions | Step::AwaitTarget | Step::AwaitRelay => sleep(POLL_INTERVAL).await,
            Step::Fence
            | Step::ListTransactions
            | Step::EndTransactions
            | Step::TakeLsn
            | Step::Grant
            | Step::Bar => in_time(self.carry_out(step)).await?,
            Step::TakeBack => {
                in_time(self.carry_out(step)).await?;
                self.pause_after_lift(observed.abort_requested || !observed.same_incarnations).await?;
            }
            _ if self.is_fenced() => in_time(self.carry_out(step)).await?,
            _ => self.carry_out(step).await?,
        }
        Ok(None)
    }

    /// The last step that was begun.
    pub fn last(&self) -> Option<Step> {
        self.last
    }

    /// The attempt is over; the next one comes later, unless the move goes back.
    async fn pause_after_lift(&mut self, goes_back: bool) -> Result<()> {
        self.progress.forget_attempt();
        if goes_back {
            return Ok(());
        }
        self.postpone("The fence was lifted: target or relay did not keep up within its time, or the relay had halted a key by then.").await
    }

    /// Asks the relay for halted keys, whose later rows would be emitted at the target before them. False, after a pause, if there are any.
    async fn may_fence(&mut self) -> Result<bool> {
        let halted_keys = self.relay.halted_keys(&self.http).await;
        if halted_keys == Some(0) {
            return Ok(true);
        }
        self.postpone(&Refusal::HaltedKeys(halted_keys).to_string()).await?;
        Ok(false)
    }

    /// Asks the relay once more: it has confirmed by now what was written before the fence, and may have halted a key of it.
    async fn may_grant(&self, fenced_for: Duration) -> bool {
        let answer = timeout(FENCE_MAX.saturating_sub(fenced_for), self.relay.halted_keys(&self.http)).await;
        answer == Ok(Some(0))
    }

    /// Waits before the next attempt, longer each time.
    async fn postpone(&mut self, reason: &str) -> Result<()> {
        self.progress.postponed += 1;
        if self.progress.postponed >= POSTPONED_MAX {
            bail!(
                "{reason} That was attempt {POSTPONED_MAX}. The rows are still followed; resume the move when the cause is mended, or abort it"
            );
        }
        let pause =
            (RETRY_PAUSE_MIN * 2_u32.saturating_pow(self.progress.postponed - 1)).min(RETRY_PAUSE_MAX);
        (self.report)(&format!("{reason} The next attempt comes in {} s", pause.as_secs()));
        sleep(pause).await;
        Ok(())
    }
}

impl Progress {
    fn forget_attempt(&mut self) {
        self.forget_drain();
        (self.fenced_at, self.fails_since, self.failures) = (None, None, 0);
    }

    fn forget_drain(&mut self) {
        (self.listed, self.transactions_ended, self.lsn) = (None, false, None);
    }

    /// How long the fence has been up, for all that this mover knows. `asked_at` is before the rows were read.
    fn fenced_for(&mut self, source: AtSource, target: AtTarget, asked_at: Instant) -> Duration {
        match (source, target) {
            (AtSource::Fenced, AtTarget::Waits | AtTarget::Barred) => {
                self.fenced_at.get_or_insert(asked_at).elapsed()
            }
            (AtSource::Owns | AtSource::Fenced | AtSource::Other, _) => {
                (self.fenced_at, self.fails_since, self.failures) = (None, None, 0);
                Duration::ZERO
            }
        }
    }

    fn drain(&self, target_has_flushed: bool, relay_has_acknowledged: bool) -> Drain {
        match (&self.listed, self.transactions_ended, &self.lsn) {
            (None, ..) => Drain::Unknown,
            (Some(_), false, _) => Drain::Running,
            (Some(_), true, None) => Drain::Ended,
            (Some(_), true, Some(_)) => Drain::At { target_has_flushed, relay_has_acknowledged },
        }
    }
}

fn describe(step: Step) -> &'static str {
    match step {
        Step::Announce(_) => "the record is written",
        Step::Empty => "rows of the buckets are removed from the target",
        Step::MakeSlot => "publication and slot are made",
        Step::Subscribe => "the target subscribes",
        Step::AwaitCopy => "rows are copied",
        Step::Fence => "fence: nobody owns the buckets",
        Step::ListTransactions | Step::AwaitTransactions => "transactions at the source end",
        Step::EndTransactions => "transactions that still run are ended",
        Step::TakeLsn => "the position of the source is taken",
        Step::AwaitTarget => "the target catches up",
        Step::AwaitRelay => "the relay of the source catches up",
        Step::Grant => "grant: the target owns the buckets",
        Step::RecordGrant => "the source records the grant",
        Step::Bar => "the target is barred",
        Step::TakeBack => "the source takes the buckets back",
        Step::Unsubscribe => "the subscription is removed",
        Step::DropSlot => "the slot is removed",
        Step::Remove => "rows of the buckets are removed from the source",
        Step::Close(..) => "the record is closed",
        Step::Done(Outcome::Moved) => "moved",
        Step::Done(Outcome::RolledBack) => "rolled back",
        Step::Refuse(_) => "refused",
    }
}

fn explain(contradiction: Contradiction) -> &'static str {
    match contradiction {
        Contradiction::TwoOwners => "both shards own the buckets",
        Contradiction::ForeignEpoch => "the buckets have epochs that this move cannot have made",
        Contradiction::LostGrant => {
            "the target has lost its grant, which the source recorded, so nobody owns the buckets: it was restored to a time before. The \
             source's rows may be partly removed, and what the target wrote meanwhile is on Kafka alone"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_follows_what_is_known() {
        let mut progress = Progress::default();
        assert_eq!(progress.drain(true, true), Drain::Unknown);
        progress.listed = Some(Vec::new());
        assert_eq!(progress.drain(true, true), Drain::Running);
        progress.transactions_ended = true;
        assert_eq!(progress.drain(true, true), Drain::Ended);
        progress.lsn = Some("0/1".to_owned());
        let at = Drain::At { target_has_flushed: false, relay_has_acknowledged: true };
        assert_eq!(progress.drain(false, true), at);
        progress.forget_attempt();
        assert_eq!(progress.drain(true, true), Drain::Unknown);
    }

    #[test]
    fn a_fence_that_is_found_up_has_a_limit_too() {
        let mut progress = Progress::default();
        let began = Instant::now();
        assert_eq!(progress.fenced_for(AtSource::Owns, AtTarget::Waits, began), Duration::ZERO);
        progress.fenced_for(AtSource::Fenced, AtTarget::Waits, began);
        assert_eq!(progress.fenced_at, Some(began));
        // It is not up for shorter because it is looked at again.
        progress.fenced_for(AtSource::Fenced, AtTarget::Barred, Instant::now());
        assert_eq!(progress.fenced_at, Some(began));
        for (source, target) in [(AtSource::Fenced, AtTarget::Granted), (AtSource::Owns, AtTarget::Waits)] {
            progress.fenced_at = Some(began);
            assert_eq!(progress.fenced_for(source, target, began), Duration::ZERO);
            assert_eq!(progress.fenced_at, None, "{source:?}, {target:?}");
        }
    }
}
