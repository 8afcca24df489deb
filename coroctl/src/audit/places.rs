//! Where the audit looks: connection strings, and nothing else of a stack.

use clap::Args;
use saga::contract::PAYMENT_QUEUE;

use crate::stack::Stack;

/// What is missing or empty is not looked at, and said to be so.
#[derive(Clone, Debug, Default, Args)]
pub struct Places {
    /// The payments database, as a role that may read it.
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true)]
    pub payments_database_url: Option<String>,
    /// The balance database.
    #[arg(long, env = "BALANCE_DATABASE_URL", hide_env_values = true)]
    pub balance_database_url: Option<String>,
    /// The processor database.
    #[arg(long, env = "PROCESSOR_DATABASE_URL", hide_env_values = true)]
    pub processor_database_url: Option<String>,
    /// Kafka, as HOST:PORT.
    #[arg(long, env = "KAFKA_BROKERS")]
    pub kafka_brokers: Option<String>,
    /// RabbitMQ.
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    pub amqp_url: Option<String>,
    /// The gateway, which exports its own ledger.
    #[arg(long, env = "GATEWAY_URL")]
    pub gateway_url: Option<String>,
    /// What stands before every topic's name.
    #[arg(long, env = "TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
    /// The work queue.
    #[arg(long, env = "QUEUE", default_value = PAYMENT_QUEUE)]
    pub queue: String,
}

impl From<&Stack> for Places {
    fn from(stack: &Stack) -> Self {
        Self {
            payments_database_url: Some(stack.payments_database_url.clone()),
            balance_database_url: Some(stack.balance_database_url.clone()),
            processor_database_url: Some(stack.processor_database_url.clone()),
            kafka_brokers: Some(stack.kafka_brokers.clone()),
            amqp_url: Some(stack.amqp_url.clone()),
            gateway_url: Some(stack.gateway_url.clone()),
            topic_prefix: String::new(),
            queue: PAYMENT_QUEUE.to_owned(),
        }
    }
}

/// What a check needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Payments,
    Balance,
    Processor,
    Kafka,
    Queue,
    Gateway,
}

impl Part {
    pub const ALL: [Part; 6] =
        [Part::Payments, Part::Balance, Part::Processor, Part::Kafka, Part::Queue, Part::Gateway];

    /// The variable that says where it is.
    pub fn variable(self) -> &'static str {
        match self {
            Part::Payments => "PAYMENTS_DATABASE_URL",
            Part::Balance => "BALANCE_DATABASE_URL",
            Part::Processor => "PROCESSOR_DATABASE_URL",
            Part::Kafka => "KAFKA_BROKERS",
            Part::Queue => "AMQP_URL",
            Part::Gateway => "GATEWAY_URL",
        }
    }
}

impl Places {
    /// Where a part is, if that was said.
    pub fn of(&self, part: Part) -> Option<&str> {
        let given = match part {
            Part::Payments => &self.payments_database_url,
            Part::Balance => &self.balance_database_url,
            Part::Processor => &self.processor_database_url,
            Part::Kafka => &self.kafka_brokers,
            Part::Queue => &self.amqp_url,
            Part::Gateway => &self.gateway_url,
        };
        given.as_deref().filter(|text| !text.is_empty())
    }

    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }
}
