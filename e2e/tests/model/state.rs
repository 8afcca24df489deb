//! Everything there is at one moment: three databases, emitted and read events, the queue, Redis, the memory of
//! the processors, the network and the gateway.

use balance_svc::saga as balance;
use payments_svc::saga as payments;
use processor_svc::saga as processor;

use crate::balance_db::{Entries, terms};
use crate::bounds::Bounds;
use crate::gateway::{Books, Lookup};
use crate::operators::Proposal;
use crate::parking::{Mended, Parked};
use crate::payments_db::Row;
use crate::processor_db::Charge;

/// Which payment; its place in [`State::lives`].
pub type Id = usize;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub lives: Vec<Life>,
    pub account: Option<Account>,
    pub topics: Topics,
    /// Another instance that has read and not yet written; its partition was taken away meanwhile.
    pub zombie: Option<Zombie>,
    /// The slot was lost, and rows were re-emitted.
    pub slot_lost: bool,
    /// Faults so far, where they are counted.
    pub faults: u8,
    /// Messages that were set aside and not retried.
    pub parked: Vec<Parked>,
    /// How many there were.
    pub set_aside: u8,
    pub mended: Mended,
    /// The first thing that a person would have to look at.
    pub wrong: Option<Wrong>,
}

/// One payment in all databases, and whatever of it is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    pub row: Row,
    pub entries: Entries,
    pub charge: Option<Charge>,
    /// `expires_at` has passed, by the processor database's clock. Kept while somebody may look at it.
    pub past_deadline: bool,
    pub queue: Queue,
    /// Redis says that the charge has ended.
    pub cached_as_ended: bool,
    /// Sorted: which is which does not matter.
    pub tasks: Vec<Task>,
    /// Requests in the network that nobody waits for any more, a bit for each key.
    pub strays: u8,
    /// A request has left for the gateway at some time.
    pub called: bool,
    pub books: Books,
    /// The user asked to cancel before there was a hold.
    pub cancelled_early: bool,
    /// What one operator has said of the charge, until another confirms it.
    pub proposal: Option<Proposal>,
    /// Operators have ended the charge.
    pub resolved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    pub available: i64,
    pub held: i64,
}

/// The work message: any number of copies is as good as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    NotEmitted,
    Waiting,
    Acknowledged,
}

/// The events of each topic that one consumer acts on, in the order of their commits; what a consumer
/// ignores has no effect and is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Topics {
    /// PaymentTopic, for balance-svc.
    pub asked: Feed<balance::Event>,
    /// PaymentResultTopic, for balance-svc.
    pub results: Feed<balance::Event>,
    /// BalanceTopic, for payments-svc.
    pub money: Feed<payments::Event>,
    /// PaymentResultTopic, for payments-svc.
    pub unknowns: Feed<payments::Event>,
    /// PaymentTopic, for processor-svc.
    pub cancels: Feed<()>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Feed<E> {
    pub emitted: Vec<(Id, E)>,
    /// The next record that the consumer reads.
    pub read: usize,
}

impl<E> Default for Feed<E> {
    fn default() -> Self {
        Feed { emitted: Vec::new(), read: 0 }
    }
}

impl<E: Clone> Feed<E> {
    pub fn emit(&mut self, id: Id, event: E) {
        self.emitted.push((id, event));
    }

    pub fn unread(&self) -> usize {
        self.emitted.len() - self.read
    }

    /// The next `count` records.
    pub fn next(&self, count: usize) -> Vec<(Id, E)> {
        self.emitted[self.read..][..count].to_vec()
    }

    /// Unread events are gone.
    pub fn lose_unread(&mut self) {
        self.emitted.truncate(self.read);
    }
}

/// A transaction that has read, while others commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Zombie {
    /// payments-svc applies an event.
    Payments { id: Id, event: payments::Event, observed: Row },
    /// payments-svc answers a request to cancel.
    Cancel { id: Id, observed: Row },
    /// balance-svc applies an event; only where it reads before it locks.
    Balance { id: Id, event: balance::Event, observed: (Entries, Option<Account>) },
    /// processor-svc applies a cancel.
    Processor { id: Id, observed: processor::State },
}

/// Work in the memory of some processor. Any number of processes: each task dies on its own, which includes that
/// all tasks of a process die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// The owner of an attempt.
    Call { attempt: i32, exposed: bool, at: CallAt },
    /// A sweeper saw that something is due.
    Sweep { from: processor::State, due: Due },
    /// An inquiry that was claimed. `delay_over`: the visibility delay was over by then.
    Inquiry { attempt: i32, delay_over: bool, at: InquiryAt },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallAt {
    /// Nothing has left yet.
    Taken,
    /// The request has left.
    Sent,
    /// It is known how it ended; to be written. `from`: the state it is decided on.
    Ended { said: Said, from: processor::State },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InquiryAt {
    Asking,
    /// The finding must be repaired at the gateway first.
    Repairing(Lookup),
    /// To be written.
    Found {
        found: Found,
        from: processor::State,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Due {
    Lease,
    Deadline,
}

/// A [`processor::Outcome`] without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    Succeeded,
    Declined,
    NotSent,
    Unknown,
}

/// A [`processor::Finding`] without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Found {
    Succeeded,
    Declined,
    Nothing,
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A service set a message aside, or a database refused what was decided.
    Parked,
    /// The row an event is about is not there: an effect was emitted before its cause.
    Missing,
    /// `decide` says that this cannot be, or that the gateway contradicts itself.
    Impossible,
    /// A payment made a step that is none, left a terminal state, or skipped a version.
    Transition,
}

impl State {
    pub fn new(bounds: &Bounds) -> State {
        let mut topics = Topics::default();
        for (id, amount) in bounds.amounts.iter().enumerate() {
            topics.asked.emit(id, balance::Event::Initiated { terms: terms(*amount) });
        }
        State {
            lives: vec![Life::accepted(); bounds.amounts.len()],
            account: bounds.deposit.map(|available| Account { available, held: 0 }),
            topics,
            zombie: None,
            slot_lost: false,
            faults: 0,
            parked: Vec::new(),
            set_aside: 0,
            mended: Mended::default(),
            wrong: None,
        }
    }

    pub fn went_wrong(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }
}

impl Life {
    /// After its 201.
    fn accepted() -> Life {
        Life {
            row: Row::accepted(),
            entries: Entries::default(),
            charge: None,
            past_deadline: false,
            queue: Queue::NotEmitted,
            cached_as_ended: false,
            tasks: Vec::new(),
            strays: 0,
            called: false,
            books: Books::default(),
            cancelled_early: false,
            proposal: None,
            resolved: false,
        }
    }

    /// The state of the charge, as the processor reads it.
    pub fn charge_state(&self) -> processor::State {
        self.charge.map_or(processor::State::Absent, |charge| charge.state())
    }

    pub fn has_ended(&self) -> bool {
        match self.row.status {
            payments::Status::Initiated | payments::Status::Authorized => false,
            payments::Status::Completed
            | payments::Status::Rejected
            | payments::Status::Failed
            | payments::Status::Cancelled => true,
        }
    }
}
