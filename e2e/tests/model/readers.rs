//! The consumers of the three topics: batches, positions, second instances.

use crate::balance_db::Applied;
use crate::bounds::Break;
use crate::coro::{Action, Coro, Source};
use crate::state::{Id, Queue, State, Topics, Wrong, Zombie};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Payments,
    Balance,
    Processor,
}

/// The part of a topic that one consumer acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Asked,
    Results,
    Money,
    Unknowns,
    Cancels,
}

pub const TOPICS: [Topic; 5] = [Topic::Asked, Topic::Results, Topic::Money, Topic::Unknowns, Topic::Cancels];
pub const READERS: [Reader; 3] = [Reader::Payments, Reader::Balance, Reader::Processor];

/// The batch of one transaction: the next record of a topic, or all there is, one topic after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    Next(Topic),
    All(Topic, Topic),
}

impl Reader {
    pub fn topics(self) -> &'static [Topic] {
        match self {
            Reader::Payments => &[Topic::Money, Topic::Unknowns],
            Reader::Balance => &[Topic::Asked, Topic::Results],
            Reader::Processor => &[Topic::Cancels],
        }
    }
}

impl Topic {
    pub fn position(self, topics: &mut Topics) -> &mut usize {
        match self {
            Topic::Asked => &mut topics.asked.read,
            Topic::Results => &mut topics.results.read,
            Topic::Money => &mut topics.money.read,
            Topic::Unknowns => &mut topics.unknowns.read,
            Topic::Cancels => &mut topics.cancels.read,
        }
    }

    pub fn read(self, topics: &Topics) -> usize {
        match self {
            Topic::Asked => topics.asked.read,
            Topic::Results => topics.results.read,
            Topic::Money => topics.money.read,
            Topic::Unknowns => topics.unknowns.read,
            Topic::Cancels => topics.cancels.read,
        }
    }

    pub fn unread(self, topics: &Topics) -> usize {
        match self {
            Topic::Asked => topics.asked.unread(),
            Topic::Results => topics.results.unread(),
            Topic::Money => topics.money.unread(),
            Topic::Unknowns => topics.unknowns.unread(),
            Topic::Cancels => topics.cancels.unread(),
        }
    }
}

impl Batch {
    /// How many records of each topic.
    fn counts(self, topics: &Topics) -> Vec<(Topic, usize)> {
        match self {
            Batch::Next(topic) => vec![(topic, 1)],
            Batch::All(first, second) => {
                vec![(first, first.unread(topics)), (second, second.unread(topics))]
            }
        }
    }
}

impl Coro {
    /// Batches that can be applied, and the faults of emitting and reading.
    pub fn relay_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for reader in READERS {
            self.batches(state, reader, actions);
        }
        for topic in TOPICS {
            if self.bounds.re_emitted {
                actions.extend((0..topic.read(&state.topics)).map(|to| Action::Rewind(topic, to)));
            }
            // In the balance database nobody reads before it holds the account's lock.
            let reads_early = match topic {
                Topic::Money | Topic::Unknowns | Topic::Cancels => self.bounds.races,
                Topic::Asked | Topic::Results => self.is_broken(Break::DeltasNotFromRows),
            };
            if reads_early && state.zombie.is_none() && topic.unread(&state.topics) > 0 {
                actions.push(Action::ZombieReads(topic));
            }
        }
        if state.zombie.is_some() {
            actions.push(Action::ZombieWrites);
        }
        if self.bounds.lost_slot && !state.slot_lost {
            let sources = [Source::Payments, Source::Balance, Source::Processor];
            actions.extend(sources.map(Action::SlotLost));
        }
    }

    fn batches(&self, state: &State, reader: Reader, actions: &mut Vec<Action>) {
        let topics = reader.topics();
        let mut batches: Vec<Batch> = Vec::with_capacity(4);
        batches.extend(topics.iter().filter(|t| t.unread(&state.topics) > 0).map(|t| Batch::Next(*t)));
        if let [first, second] = topics
            && first.unread(&state.topics) + second.unread(&state.topics) > 1
        {
            batches.push(Batch::All(*first, *second));
            if first.unread(&state.topics) > 0 && second.unread(&state.topics) > 0 {
                batches.push(Batch::All(*second, *first));
            }
        }
        if self.is_broken(Break::OffsetBeforeCommit) {
            actions.extend(batches.iter().map(|batch| Action::Skip(reader, *batch)));
        }
        actions.extend(batches.into_iter().map(|batch| Action::Apply(reader, batch)));
    }

    /// One transaction, then the offsets. False if it has to wait, with nothing applied.
    pub fn apply(&self, state: &mut State, reader: Reader, batch: Batch) -> bool {
        let topics = &state.topics;
        let counts = batch.counts(topics);
        let applied = match reader {
            Reader::Payments => {
                let records: Vec<_> = counts
                    .iter()
                    .flat_map(|(topic, count)| match topic {
                        Topic::Money => topics.money.next(*count),
                        Topic::Unknowns => topics.unknowns.next(*count),
                        Topic::Asked | Topic::Results | Topic::Cancels => Vec::new(),
                    })
                    .collect();
                let observed: Vec<_> = state.lives.iter().map(|life| life.row).collect();
                self.apply_to_payments(state, &records, &observed)
            }
            Reader::Balance => {
                let records: Vec<_> = counts
                    .iter()
                    .flat_map(|(topic, count)| match topic {
                        Topic::Asked => topics.asked.next(*count),
                        Topic::Results => topics.results.next(*count),
                        Topic::Money | Topic::Unknowns | Topic::Cancels => Vec::new(),
                    })
                    .collect();
                let observed = self.read_balance(state);
                match self.apply_to_balance(state, &records, &observed) {
                    Applied::Done => true,
                    Applied::Missing => {
                        state.went_wrong(Wrong::Missing);
                        false
                    }
                }
            }
            Reader::Processor => {
                for (id, ()) in topics.cancels.next(1) {
                    let observed = state.lives[id].charge_state();
                    self.cancel_charge(state, id, &observed);
                }
                true
            }
        };
        if applied {
            advance(state, &counts);
        }
        applied
    }

    pub fn skip(&self, state: &mut State, batch: Batch) {
        let counts = batch.counts(&state.topics);
        advance(state, &counts);
    }

    pub fn zombie_reads(&self, state: &mut State, topic: Topic) {
        let (topics, lives) = (&state.topics, &state.lives);
        let payments = |records: Vec<(Id, payments_svc::saga::Event)>| {
            records.first().map(|(id, event)| Zombie::Payments {
                id: *id,
                event: *event,
                observed: lives[*id].row,
            })
        };
        let balance = |records: Vec<(Id, balance_svc::saga::Event)>| {
            records.first().map(|(id, event)| Zombie::Balance {
                id: *id,
                event: event.clone(),
                observed: (lives[*id].entries, state.account),
            })
        };
        state.zombie = match topic {
            Topic::Money => payments(topics.money.next(1)),
            Topic::Unknowns => payments(topics.unknowns.next(1)),
            Topic::Asked => balance(topics.asked.next(1)),
            Topic::Results => balance(topics.results.next(1)),
            Topic::Cancels => topics
                .cancels
                .next(1)
                .first()
                .map(|(id, ())| Zombie::Processor { id: *id, observed: lives[*id].charge_state() }),
        };
    }

    pub fn cancel_reads(&self, state: &mut State, id: Id) {
        state.zombie = Some(Zombie::Cancel { id, observed: state.lives[id].row });
    }

    /// It writes on what it read. If it lost a race it reads again, which is what the first instance does as well; a
    /// request to cancel is decided anew at once. Its offsets are refused: the partition is another's.
    pub fn zombie_writes(&self, state: &mut State) {
        match state.zombie.take() {
            None => {}
            Some(Zombie::Payments { id, event, observed }) => {
                let mut rows: Vec<_> = state.lives.iter().map(|life| life.row).collect();
                rows[id] = observed;
                self.apply_to_payments(state, &[(id, event)], &rows);
            }
            Some(Zombie::Cancel { id, observed }) => {
                let lost = !self.request_cancel(state, id, &observed);
                let observed = state.lives[id].row;
                let _ = lost && self.request_cancel(state, id, &observed);
            }
            Some(Zombie::Balance { id, event, observed: (entries, account) }) => {
                let mut read = self.read_balance(state);
                read.0[id] = entries;
                read.1 = account;
                let _ = self.apply_to_balance(state, &[(id, event)], &read);
            }
            Some(Zombie::Processor { id, observed }) => {
                let lost = !self.cancel_charge(state, id, &observed);
                let observed = state.lives[id].charge_state();
                let _ = lost && self.cancel_charge(state, id, &observed);
            }
        }
    }

    /// Unread events are lost; then every present row is emitted.
    pub fn re_emit(&self, state: &mut State, source: Source) {
        state.slot_lost = true;
        match source {
            Source::Payments => {
                state.topics.asked.lose_unread();
                state.topics.cancels.lose_unread();
                for life in &mut state.lives {
                    if life.queue == Queue::Waiting {
                        life.queue = Queue::NotEmitted;
                    }
                }
            }
            Source::Balance => state.topics.money.lose_unread(),
            Source::Processor => {
                state.topics.results.lose_unread();
                state.topics.unknowns.lose_unread();
            }
        }
        for id in 0..state.lives.len() {
            match source {
                Source::Payments => self.emit_payment(state, id),
                Source::Balance => self.emit_ledger(state, id),
                Source::Processor => self.emit_charge(state, id),
            }
        }
    }
}

fn advance(state: &mut State, counts: &[(Topic, usize)]) {
    for (topic, count) in counts {
        *topic.position(&mut state.topics) += count;
    }
}
