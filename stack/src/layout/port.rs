//! The ports of a stack: each is a fixed offset from the stack's first one.
//!
//! * The ports below 100 have names. Documents and tests name them, so they stay what they are.
//! * From 100 on are those of further instances (`cargo stack scale`), in the order of `services::further`.

/// How many ports after the base belong to a stack.
pub const PORTS: u16 = 200;
/// The kernel hands out ports from here on.
pub const EPHEMERAL_FIRST: u16 = 32_768;
/// The first offset of further instances.
pub const FURTHER_FIRST: u16 = 100;

/// Makes the ports, each with its offset.
macro_rules! ports {
    ($($(#[$doc:meta])* $name:ident = $offset:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Port {
            $($(#[$doc])* $name,)*
            /// A listener of a further instance, by its offset.
            Further(u16),
        }

        impl Port {
            /// Those with a name.
            #[cfg(test)]
            pub const NAMED: &[Self] = &[$(Self::$name),*];

            /// The distance from the stack's first port.
            pub const fn offset(self) -> u16 {
                match self {
                    $(Self::$name => $offset,)*
                    Self::Further(offset) => offset,
                }
            }
        }
    };
}

ports! {
    /// Ports that clients use.
    Edge = 0,
    Postgres = 1,
    Kafka = 4,
    KafkaController = 5,
    Amqp = 6,
    RabbitManagement = 7,
    RabbitPrometheus = 8,
    RabbitDistribution = 9,
    Epmd = 10,
    Redis = 11,
    /// Kafka, for whoever signs in.
    KafkaSasl = 12,
    Search = 13,
    /// OpenSearch's own, between its nodes.
    SearchTransport = 14,
    /// The servers of further shards of payments and balance.
    PostgresTwo = 15,
    PostgresThree = 16,
    PostgresFour = 17,
    Payments = 20,
    PaymentsAdmin = 21,
    Balance = 22,
    BalanceAdmin = 23,
    Processor = 24,
    ProcessorAdmin = 25,
    RelayAdmin = 26,
    Gateway = 27,
    SecondPayments = 28,
    SecondPaymentsAdmin = 29,
    EdgeAdmin = 30,
    Prometheus = 31,
    SearchIndexer = 32,
    SecondSearchIndexer = 33,
    /// A second relay, for as long as the first one is replaced.
    RelayBeside = 34,
    Smtp = 40,
    Notifier = 41,
    Fraud = 42,
    FraudRelay = 43,
    Auditor = 44,
    Tracer = 50,
    /// Where traces are sent.
    Otlp = 51,
    Zipkin = 52,
    NodeExporter = 60,
    PostgresExporter = 61,
    RedisExporter = 62,
    /// The exporter of Kafka, in its own process.
    KafkaMetrics = 63,
    /// The nodes of a highly available Postgres, and the admin listeners of their Patroni.
    Postgres1 = 70,
    Postgres2 = 71,
    Postgres3 = 72,
    Patroni1 = 73,
    Patroni2 = 74,
    Patroni3 = 75,
    Etcd1 = 76,
    Etcd2 = 77,
    Etcd3 = 78,
    /// etcd's own, between its members.
    EtcdPeer1 = 79,
    EtcdPeer2 = 80,
    EtcdPeer3 = 81,
    /// The further brokers of a highly available stack.
    Kafka2 = 82,
    KafkaSasl2 = 83,
    KafkaController2 = 84,
    KafkaMetrics2 = 85,
    Kafka3 = 86,
    KafkaSasl3 = 87,
    KafkaController3 = 88,
    KafkaMetrics3 = 89,
    Amqp2 = 90,
    RabbitManagement2 = 91,
    RabbitPrometheus2 = 92,
    RabbitDistribution2 = 93,
    Amqp3 = 94,
    RabbitManagement3 = 95,
    RabbitPrometheus3 = 96,
    RabbitDistribution3 = 97,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::services::{INSTANCES, further};

    #[test]
    fn no_two_listeners_share_a_port_and_all_of_them_belong_to_the_stack() {
        let named: Vec<u16> = Port::NAMED.iter().map(|port| port.offset()).collect();
        assert!(named.iter().all(|offset| *offset < FURTHER_FIRST), "{named:?}");
        let further = further::all().filter(|instance| !INSTANCES.contains(instance));
        let further: Vec<u16> = further.flat_map(|it| it.ports()).map(Port::offset).collect();
        assert!(further.iter().all(|offset| (FURTHER_FIRST..PORTS).contains(offset)), "{further:?}");
        let all: Vec<u16> = named.into_iter().chain(further).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    }
}
