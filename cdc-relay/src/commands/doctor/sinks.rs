//! Checks Kafka and RabbitMQ, and reads the state topic.

pub mod brokers;
mod queues;

use anyhow::Result;
use clap::Args;

use super::report::Section;
use super::{SavedStates, SinkReport};
use crate::commands::arguments::AmqpArgs;
use crate::commands::state_topic;
use crate::routes::Routes;

#[derive(Debug, Clone, Args)]
pub struct SinkArgs {
    #[command(flatten)]
    kafka: Option<::brokers::Brokers>,
    #[command(flatten)]
    amqp: AmqpArgs,
}

pub(super) async fn check(routes: &Routes, args: &SinkArgs) -> Result<SinkReport> {
    let mut report = SinkReport { sections: Vec::new(), not_checked: Vec::new(), saved: None };
    match &args.kafka {
        None => report.not_checked.push(
            "Kafka, and the checkpoints there (neither KAFKA_BROKERS nor KAFKA_CONFIG is set)".to_owned(),
        ),
        Some(servers) => check_kafka(routes, servers, &mut report).await?,
    }
    if !routes.queues.is_empty() {
        check_rabbitmq(routes, args, &mut report).await?;
    }
    Ok(report)
}

async fn check_kafka(routes: &Routes, servers: &::brokers::Brokers, report: &mut SinkReport) -> Result<()> {
    let facts = brokers::ask(servers, routes).await?;
    report.saved = Some(if facts.topics.contains_key(routes.relay.state_topic.get_ref()) {
        let records = state_topic::records(servers, routes)?.records;
        SavedStates { checkpoints: state_topic::checkpoints(servers, routes)?, records }
    } else {
        SavedStates::default()
    });
    if servers.signs_in() {
        report.not_checked.push(
            "whether the relay may write to its topics: Kafka reveals that only to a principal that writes"
                .to_owned(),
        );
    }
    let findings = brokers::check(&facts, routes);
    report.sections.push(Section { name: "kafka".to_owned(), place: servers.servers.clone(), findings });
    Ok(())
}

async fn check_rabbitmq(routes: &Routes, args: &SinkArgs, report: &mut SinkReport) -> Result<()> {
    let Some(uri) = &args.amqp.amqp_url else {
        report.not_checked.push("RabbitMQ (AMQP_URL is not set)".to_owned());
        return Ok(());
    };
    let findings = queues::check(&queues::ask(uri, routes).await?);
    let place = uri.rsplit_once('@').map_or(uri.as_str(), |(_, place)| place).to_owned();
    report.sections.push(Section { name: "rabbitmq".to_owned(), place, findings });
    report.not_checked.push(
        "RabbitMQ's policies, which AMQP does not show: `rabbitmqctl list_policies` should name none with \
         max-length, message-ttl, expires or delivery-limit for these queues"
            .to_owned(),
    );
    Ok(())
}
