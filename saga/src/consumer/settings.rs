//! How a process is given Kafka and its group: the same options in every consumer.

use brokers::Brokers;
use clap::Args;

use super::Subscription;

// No Debug: the properties of a connection may be secrets.
#[derive(Args, Clone)]
#[group(skip)]
pub struct Settings {
    #[command(flatten)]
    pub kafka: Brokers,
    /// The consumer group, which all instances share; by default the name of the service.
    #[arg(long, env = "GROUP_ID")]
    pub group_id: Option<String>,
    /// A stable name of this instance, unique in the group: its restart then causes no rebalance.
    #[arg(long, env = "GROUP_INSTANCE_ID")]
    pub group_instance_id: Option<String>,
    /// Prefix of every topic name, so that several systems can share one Kafka.
    #[arg(long, env = "TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
}

impl Settings {
    /// The name of a topic in this system.
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }

    /// The subscription of `service` to `topics`, which are named without their prefix.
    pub fn subscription(&self, service: &str, topics: &[&str]) -> Subscription {
        Subscription {
            brokers: self.kafka.clone(),
            group_id: self.group_id.clone().unwrap_or_else(|| service.to_owned()),
            instance_id: self.group_instance_id.clone(),
            topics: topics.iter().map(|name| self.topic(name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Config {
        #[command(flatten)]
        consumer: Settings,
    }

    fn subscription(flags: &[&str]) -> Subscription {
        let own = ["program", "--kafka-brokers=kafka:9092"];
        let config = Config::parse_from(own.iter().chain(flags));
        config.consumer.subscription("fraud", &["PaymentTopic", "ServiceTopic"])
    }

    #[test]
    fn a_group_is_called_after_its_service_unless_it_is_given_a_name() {
        let plain = subscription(&[]);
        assert_eq!((plain.group_id.as_str(), plain.instance_id), ("fraud", None));
        assert_eq!(plain.topics, ["PaymentTopic", "ServiceTopic"]);
        let named = subscription(&["--group-id=g", "--group-instance-id=i", "--topic-prefix=t-"]);
        assert_eq!((named.group_id.as_str(), named.instance_id.as_deref()), ("g", Some("i")));
        assert_eq!(named.topics, ["t-PaymentTopic", "t-ServiceTopic"]);
    }
}
