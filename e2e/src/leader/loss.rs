//! The losses: the nodes of each, and the delays that it may cost.

use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;
use stack::servers::{Node, etcd, kafka, patroni, rabbitmq};

use super::BEFORE;

/// Patroni's own time until a primary that is gone is replaced, and some for the promotion and for clients to find it.
const ACCEPT_GAP_MAX: Duration = Duration::from_secs(25);
const EVENT_GAP_MAX: Duration = Duration::from_secs(30);
/// Where nothing is replaced, only Patroni's own hesitation counts: less than a replacement takes, and some for a busy machine.
const UNDISTURBED_GAP_MAX: Duration = Duration::from_secs(15);
/// How often, at the least, whoever is served by a primary that nobody follows looks at the other nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A broker that is gone is noticed after nine seconds (`broker.session.timeout.ms`); then others lead its partitions and groups.
const BROKER_GAP_MAX: Duration = Duration::from_secs(25);
/// How long a node stays lost: longer than its replacement takes, so that a delay shows that nothing replaced it.
const LOST_SECONDS: u64 = 45;
/// Whoever was connected to the node connects to another at once, and the queue has another leader after some seconds.
const QUEUE_GAP_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// SIGKILL to the primary and its Patroni.
    Kill,
    /// SIGSTOP to both, and SIGCONT once another is the primary.
    Freeze,
    /// SIGSTOP to the Patroni of the primary alone, and SIGCONT later: it loses its role and does not know it, while clients and relay
    /// still reach it. Nothing fences it.
    Patroni,
    /// The same, and SIGSTOP to whatever sends the primary's WAL to the standbys: it is cut off from them and from etcd, and not from
    /// clients and relay. Nothing fences it.
    Cut,
    /// SIGSTOP to both standbys, and SIGCONT later: no commit is acknowledged meanwhile, and nothing is emitted.
    Standbys,
    /// SIGKILL to one member of etcd.
    Etcd,
    /// SIGKILL to all members of etcd.
    AllEtcd,
    /// SIGKILL to each broker of Kafka in turn, once the one before is in sync again.
    Kafka,
    /// SIGKILL to each node of RabbitMQ in turn, once the one before is there again.
    Rabbitmq,
}

/// The delays of a load.
pub struct Delays<T> {
    /// The longest time in which no payment was accepted.
    pub accepted: T,
    /// The longest from the acceptance of a payment to its hold.
    pub held: T,
    /// The longest from the acceptance of a payment to its charge.
    pub charged: T,
}

impl Loss {
    /// The delays that it may cost.
    pub fn delays_max(self) -> Delays<Duration> {
        let lost = self.lost_time();
        let (accepted, held) = match self {
            Self::Kill | Self::Freeze | Self::Patroni => (ACCEPT_GAP_MAX, EVENT_GAP_MAX),
            // It answers: services and relay look at the others while something waits for standbys, every few seconds.
            Self::Cut => (ACCEPT_GAP_MAX + LOOK_INTERVAL, EVENT_GAP_MAX + LOOK_INTERVAL),
            // Commits wait until they are back.
            Self::Standbys => (lost + UNDISTURBED_GAP_MAX, lost + UNDISTURBED_GAP_MAX),
            Self::Etcd | Self::AllEtcd => (UNDISTURBED_GAP_MAX, UNDISTURBED_GAP_MAX),
            Self::Kafka => (UNDISTURBED_GAP_MAX, BROKER_GAP_MAX),
            Self::Rabbitmq => (UNDISTURBED_GAP_MAX, UNDISTURBED_GAP_MAX),
        };
        let charged = match self {
            Self::Rabbitmq => QUEUE_GAP_MAX,
            // It comes after the hold, and takes a connection of the processor's.
            _ => held + LOOK_INTERVAL,
        };
        Delays { accepted, held, charged }
    }

    /// Whether another node of Postgres is the primary afterwards.
    pub fn replaces_primary(self) -> bool {
        matches!(self, Self::Kill | Self::Freeze | Self::Patroni | Self::Cut)
    }

    /// How many payments at this rate last for all of it: those before the first loss, and for each loss twice the time that it lasts.
    pub fn payments(self, rate: f64) -> usize {
        let losses = self.groups(Node::One).len() as f64;
        BEFORE + (losses * 2.0 * self.lost_time().as_secs_f64() * rate).ceil() as usize
    }

    /// How long each node stays lost.
    pub fn lost_time(self) -> Duration {
        Duration::from_secs(LOST_SECONDS)
    }

    /// The servers that are lost: at once within a group, one group after the other.
    pub fn groups(self, primary: Node) -> Vec<Vec<&'static str>> {
        match self {
            Self::Kill | Self::Freeze | Self::Patroni | Self::Cut => vec![vec![patroni::name(primary)]],
            Self::Standbys => {
                vec![Node::ALL.into_iter().filter(|node| *node != primary).map(patroni::name).collect()]
            }
            Self::Etcd => vec![vec![etcd::name(Node::One)]],
            Self::AllEtcd => vec![Node::ALL.map(etcd::name).to_vec()],
            Self::Kafka => Node::ALL.map(|node| vec![kafka::name(node)]).to_vec(),
            Self::Rabbitmq => Node::ALL.map(|node| vec![rabbitmq::name(node)]).to_vec(),
        }
    }

    pub fn signal(self) -> Signal {
        match self {
            Self::Freeze | Self::Patroni | Self::Cut | Self::Standbys => Signal::STOP,
            Self::Kill | Self::Etcd | Self::AllEtcd | Self::Kafka | Self::Rabbitmq => Signal::KILL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_nothing_replaces_takes_longer_than_its_delays_may() {
        for loss in Loss::value_variants().iter().filter(|loss| **loss != Loss::Standbys) {
            let Delays { accepted, held, charged } = loss.delays_max();
            assert!([accepted, held, charged].iter().all(|max| *max < loss.lost_time()), "{loss:?}");
        }
    }

    #[test]
    fn the_load_lasts_until_all_is_back() {
        for loss in Loss::value_variants() {
            for rate in [1.0, 12.0, 40.0] {
                let seconds = (loss.payments(rate) - BEFORE) as f64 / rate;
                let losses = loss.groups(Node::One).len() as f64;
                assert!(seconds >= losses * 1.5 * loss.lost_time().as_secs_f64(), "{loss:?} at {rate}/s");
            }
        }
    }
}
