//! How far a check goes, and what may be broken on purpose.

/// How the gateway treats a key that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The same key is decided once, whenever its requests arrive.
    Honoured,
    /// A key is known once its charge can be found: the least that makes sending again safe.
    OnceVisible,
    /// Every request is a charge of its own; the processor is configured for it (`gateway_idempotent = false`).
    Ignored,
}

/// Whoever acts besides users, processors and the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    /// A work message that nobody emitted comes first, with another amount than was held.
    pub forger: bool,
    /// Operators say what the gateway says, one at a time, and another confirms it later.
    pub operators: bool,
    /// How many messages services set aside though they could be applied; operators retry and dismiss them at any time.
    pub set_aside: u8,
}

pub const NOBODY: Others = Others { forger: false, operators: false, set_aside: 0 };

/// The bounds of an exhaustive exploration. A smaller number of one thing leaves room for more of another; together the
/// configurations in `main.rs` go through everything.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The amount of each payment, all on one account.
    pub amounts: &'static [i64],
    /// The money of the account; `None`: the user has no account.
    pub deposit: Option<i64>,
    /// Leases a charge can take. The call of the last one is not lost before it reaches the gateway; so that no
    /// other count of faults is needed.
    pub attempts: i32,
    /// Sweepers' reports, and inquiries, in memory at the same time.
    pub sweeps: usize,
    pub inquiries: usize,
    pub keys: Keys,
    /// The gateway may answer "pending" and decide later; its inquiries may lag behind its decisions.
    pub late: bool,
    /// Any request may get an answer that does not name our charge.
    pub foreign: bool,
    /// Who acts besides.
    pub others: Others,
    /// Calls leave in time, and when the visibility delay is over nothing is still to come. Not assumed where keys
    /// are honoured: then nothing rests on time.
    pub timely: bool,
    /// Events are emitted and read again from any earlier position, work is redelivered, Redis caches and evicts.
    pub re_emitted: bool,
    /// Second instances, and requests to cancel, hold stale reads.
    pub races: bool,
    /// One replication slot is lost with all that was not read yet, and its rows are re-emitted.
    pub lost_slot: bool,
    /// The user asks to cancel, at any time and any number of times.
    pub cancels: bool,
    /// Faults in all; `None`: any number.
    pub faults: Option<u8>,
}

/// One payment, funds for it, no faults of the relay, a gateway that answers: the base of all configurations.
pub const PLAIN: Bounds = Bounds {
    amounts: &[5],
    deposit: Some(8),
    attempts: 1,
    sweeps: 1,
    inquiries: 1,
    keys: Keys::Honoured,
    late: false,
    foreign: false,
    others: NOBODY,
    timely: false,
    re_emitted: false,
    races: false,
    lost_slot: false,
    cancels: true,
    faults: None,
};

/// Planted mistakes. Each is one that somebody could make in a store, in the wiring or in an
/// adapter around `decide`, and that the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A call that timed out is taken for a decline, so the hold is released.
    ReleaseOnTimeout,
    /// A decline that does not say whose it is, is believed.
    UnnamedDeclineBelieved,
    /// The charged amount is captured, whatever was held.
    CaptureWithoutComparison,
    /// The work message is acknowledged before its row is committed.
    AckBeforeCommit,
    /// The offset is stored before the batch is committed.
    OffsetBeforeCommit,
    /// An event whose row is not there is taken for a duplicate.
    MissingTakenForDuplicate,
    /// Another attempt calls with another key.
    SecondGatewayKey,
    /// Redis caches a message as it is taken, not a charge that has ended, and is believed without the row.
    RedisBeforeCommit,
    /// A cancel reaches the processor when there is no hold yet.
    CancelBeforeHold,
    /// Not found is believed at once.
    ResendBeforeVisibility,
    /// Not found, with the visibility delay over, is taken for a decline.
    NotFoundIsDecline,
    /// An outcome is written whatever attempt it is about.
    OutcomeWithoutAttemptGuard,
    /// A lapse is written whatever attempt it was observed in.
    LapseWithoutAttemptGuard,
    /// That a call may have left is forgotten when the next attempt begins.
    ExposureForgotten,
    /// The deadline ends a charge that is being called.
    DeadlineEndsCalls,
    /// A cancel ends a charge that is being called.
    CancelEndsCalls,
    /// The call is made before the intent is committed.
    CallBeforeIntent,
    /// The ledger has no primary key, and every emission is applied.
    MoneyMovesAtEveryEmission,
    /// Account deltas are those of the entries decided, not of the rows that the insert returned; and entries are read
    /// before the lock is held.
    DeltasNotFromRows,
    /// A payment's transition is written whatever its version is by now.
    NoVersionGuard,
    /// A cancel that came before the hold is forgotten when the hold comes.
    EarlyCancelForgotten,
    /// balance-svc gets no cancel that is only recorded, though it may be the only event of a payment.
    RecordedCancelIgnored,
    /// What operators say of a charge is written whatever became of it since.
    StaleConfirmation,
    /// A parked message is dismissed without a look whether it can be applied.
    DismissedUntried,
    /// A retry is recorded, and what the message wrote is not.
    RetryRecordedAlone,
}
