//! The servers: what each needs on disk, its command line, and how to know that it is ready.

pub mod collector;
pub mod etcd;
pub mod exporters;
pub mod haproxy;
pub mod java;
pub mod kafka;
pub mod opensearch;
pub mod patroni;
pub mod postgres;
pub mod prometheus;
pub mod rabbitmq;
pub mod redis;
pub mod smtp;
pub mod zipkin;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::extras::Extra;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::output::Step;
use crate::probe;
use crate::shards::FurtherShard;
use crate::spec::{Restart, SERVER_TIER, Spec, StopSignal};

/// One of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    One,
    Two,
    Three,
}

impl Node {
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Three];

    /// The nodes of each server of which a highly available stack has three, and any other stack one.
    pub fn all(layout: &Layout) -> &'static [Self] {
        if layout.is_ha() { &Self::ALL } else { &[Self::One] }
    }

    /// HOST:PORT of each of [`Self::all`], with commas between.
    pub fn addresses(layout: &Layout, port: impl Fn(Self) -> Port) -> String {
        let nodes = Self::all(layout).iter().map(|node| format!("127.0.0.1:{}", layout.port(port(*node))));
        nodes.collect::<Vec<_>>().join(",")
    }

    /// Its own of three things.
    pub fn of<T>(self, [one, two, three]: [T; 3]) -> T {
        match self {
            Self::One => one,
            Self::Two => two,
            Self::Three => three,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The one of a stack without shards, or the first shard's.
    Postgres,
    /// That of a further shard.
    PostgresShard(FurtherShard),
    /// Of a highly available stack, instead of `Postgres`.
    Etcd(Node),
    /// The same: Patroni and its PostgreSQL.
    PostgresNode(Node),
    /// A stack that is not highly available has the first.
    Kafka(Node),
    /// The same.
    RabbitMq(Node),
    Redis,
    Prometheus,
    HaProxy,
    OpenSearch,
    Smtp,
    Collector,
    Zipkin,
    NodeExporter,
    PostgresExporter,
    RedisExporter,
}

impl Server {
    pub const ALL: [Self; 26] = [
        Self::Postgres,
        Self::PostgresShard(FurtherShard::Two),
        Self::PostgresShard(FurtherShard::Three),
        Self::PostgresShard(FurtherShard::Four),
        Self::Etcd(Node::One),
        Self::Etcd(Node::Two),
        Self::Etcd(Node::Three),
        Self::PostgresNode(Node::One),
        Self::PostgresNode(Node::Two),
        Self::PostgresNode(Node::Three),
        Self::Kafka(Node::One),
        Self::Kafka(Node::Two),
        Self::Kafka(Node::Three),
        Self::RabbitMq(Node::One),
        Self::RabbitMq(Node::Two),
        Self::RabbitMq(Node::Three),
        Self::Redis,
        Self::Prometheus,
        Self::HaProxy,
        Self::OpenSearch,
        Self::Smtp,
        Self::Zipkin,
        Self::Collector,
        Self::NodeExporter,
        Self::PostgresExporter,
        Self::RedisExporter,
    ];

    /// The servers of a stack.
    pub fn of(layout: &Layout) -> Vec<Self> {
        let kept = Extra::of(layout);
        let wanted = |server: &Self| match server {
            Self::Postgres => !layout.is_ha(),
            Self::PostgresShard(shard) => FurtherShard::of(layout).contains(shard),
            Self::Etcd(_) | Self::PostgresNode(_) => layout.is_ha(),
            Self::Kafka(node) | Self::RabbitMq(node) => Node::all(layout).contains(node),
            other => Extra::includes(&kept, other.extra()),
        };
        Self::ALL.into_iter().filter(wanted).collect()
    }

    /// The extra that it belongs to; none if every stack has it.
    pub fn extra(self) -> Option<Extra> {
        match self {
            Self::OpenSearch => Some(Extra::Search),
            Self::Smtp => Some(Extra::Notify),
            Self::Collector | Self::Zipkin => Some(Extra::Traces),
            Self::NodeExporter | Self::PostgresExporter | Self::RedisExporter => Some(Extra::Observe),
            Self::Postgres
            | Self::PostgresShard(_)
            | Self::Etcd(_)
            | Self::PostgresNode(_)
            | Self::Kafka(_)
            | Self::RabbitMq(_)
            | Self::Redis
            | Self::Prometheus
            | Self::HaProxy => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::PostgresShard(shard) => shard.server(),
            Self::Etcd(node) => etcd::name(node),
            Self::PostgresNode(node) => patroni::name(node),
            Self::Kafka(node) => kafka::name(node),
            Self::RabbitMq(node) => rabbitmq::name(node),
            Self::Redis => "redis",
            Self::Prometheus => "prometheus",
            Self::HaProxy => "haproxy",
            Self::OpenSearch => "opensearch",
            Self::Smtp => "smtp",
            Self::Collector => "collector",
            Self::Zipkin => "zipkin",
            Self::NodeExporter => "node-exporter",
            Self::PostgresExporter => "postgres-exporter",
            Self::RedisExporter => "redis-exporter",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|server| server.name() == name)
    }

    /// The ports it listens on.
    pub fn ports(self) -> &'static [Port] {
        match self {
            Self::Postgres => &[Port::Postgres],
            Self::PostgresShard(FurtherShard::Two) => &[Port::PostgresTwo],
            Self::PostgresShard(FurtherShard::Three) => &[Port::PostgresThree],
            Self::PostgresShard(FurtherShard::Four) => &[Port::PostgresFour],
            Self::Etcd(node) => etcd::ports(node),
            Self::PostgresNode(node) => patroni::ports(node),
            Self::Kafka(node) => kafka::ports(node),
            Self::RabbitMq(node) => rabbitmq::ports(node),
            Self::Redis => &[Port::Redis],
            Self::Prometheus => &[Port::Prometheus],
            Self::HaProxy => &[Port::Edge, Port::EdgeAdmin],
            Self::OpenSearch => &[Port::Search, Port::SearchTransport],
            Self::Smtp => &[Port::Smtp],
            Self::Collector => &[Port::Otlp],
            Self::Zipkin => &[Port::Zipkin],
            Self::NodeExporter => &[Port::NodeExporter],
            Self::PostgresExporter => &[Port::PostgresExporter],
            Self::RedisExporter => &[Port::RedisExporter],
        }
    }

    /// Writes its configuration, makes its data at first use, and returns what to run, in order of starting.
    ///
    /// # Errors
    /// When a program is missing or its data cannot be made.
    pub fn prepare(self, layout: &Layout, step: &Step) -> Result<Vec<Spec>> {
        match self {
            Self::Postgres => postgres::prepare(layout, self.name(), Port::Postgres, step),
            Self::PostgresShard(shard) => postgres::prepare(layout, self.name(), shard.port(), step),
            Self::Etcd(node) => etcd::prepare(layout, node),
            Self::PostgresNode(node) => patroni::prepare(layout, node),
            Self::Kafka(node) => kafka::prepare(layout, node, step),
            Self::RabbitMq(node) => rabbitmq::prepare(layout, node),
            Self::Redis => redis::prepare(layout),
            Self::Prometheus => prometheus::prepare(layout),
            Self::HaProxy => haproxy::prepare(layout),
            Self::OpenSearch => opensearch::prepare(layout),
            Self::Smtp => smtp::prepare(layout),
            Self::Collector => collector::prepare(layout),
            Self::Zipkin => zipkin::prepare(layout),
            Self::NodeExporter => exporters::node(layout),
            Self::PostgresExporter => exporters::postgres(layout),
            Self::RedisExporter => exporters::redis(layout),
        }
    }

    /// The processes of this server alone, unsupervised: for tests that kill it. The layout must be its own.
    ///
    /// # Errors
    /// As [`Server::prepare`].
    pub fn alone(self, layout: &Layout) -> Result<Vec<Spec>> {
        fs::create_dir_all(layout.dir.join("logs"))?;
        self.prepare(layout, &Step::silent())
    }

    pub fn ready(self, layout: &Layout) -> bool {
        match self {
            Self::Postgres => probe::postgres(layout, Port::Postgres),
            Self::PostgresShard(shard) => probe::postgres(layout, shard.port()),
            Self::Etcd(node) => probe::http(layout, etcd::client_port(node), "/health"),
            Self::PostgresNode(node) => patroni::ready(layout, node),
            // Without its rules nobody may do anything there.
            Self::Kafka(node) => {
                probe::kafka(layout, kafka::port(node)) && kafka::acl::ensure_rules(layout, node).is_ok()
            }
            Self::RabbitMq(node) => probe::amqp(layout, rabbitmq::port(node)),
            Self::Redis => {
                let login = Login::CacheAdministrator;
                let password = login.password(layout);
                password.is_ok_and(|password| probe::redis(layout, login.user(), &password))
            }
            Self::Prometheus => probe::http(layout, Port::Prometheus, "/-/ready"),
            // Whether it has anyone to pass requests on to is asked when the services are up.
            Self::HaProxy => probe::http(layout, Port::EdgeAdmin, "/metrics"),
            Self::Smtp => probe::smtp(layout),
            Self::Collector => probe::otlp(layout),
            Self::Zipkin => probe::http(layout, Port::Zipkin, "/health"),
            // A page without metrics: whether they reach their servers is no matter of starting.
            Self::NodeExporter => probe::http(layout, Port::NodeExporter, "/"),
            Self::PostgresExporter => probe::http(layout, Port::PostgresExporter, "/"),
            Self::RedisExporter => probe::http(layout, Port::RedisExporter, "/"),
            Self::OpenSearch => {
                // Its time-out is below the probe's.
                let health = "/_cluster/health?wait_for_status=yellow&timeout=500ms";
                probe::http(layout, Port::Search, health)
            }
        }
    }

    /// The longest that its start may take on a slow machine (crash recovery included).
    pub fn start_timeout(self) -> Duration {
        match self {
            // At its first start each of three nodes waits until the ones before have joined.
            Self::RabbitMq(_) => Duration::from_secs(240),
            _ => Duration::from_secs(120),
        }
    }
}

/// Settings that servers have in common.
fn spec(layout: &Layout, name: &str, cwd: PathBuf, argv: Vec<String>, port: Port) -> Spec {
    Spec {
        name: name.to_owned(),
        argv,
        env: BTreeMap::new(),
        cwd,
        log: layout.log(name),
        uid: layout.uid,
        restart: Restart::OnCommand,
        tier: SERVER_TIER,
        stop_signal: StopSignal::Term,
        stop_seconds: 60,
        port: Some(layout.port(port)),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
