//! `cdc-relay run` streams until it is stopped.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use brokers::Brokers;
use clap::Args;
use listener::Tls;
use listener::operators::Name;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::wiring::{Admin, SinkClients};
use crate::commands::arguments::{AmqpArgs, RoutesArgs};
use crate::commands::outcome::{Ending, Outcome};
use crate::routes::Routes;

/// Streams until it is stopped (SIGTERM or Ctrl-C), then flushes and confirms.
///
/// Before it emits anything, it compares each source with its checkpoint. A source that would lose or invent something is
/// refused, and says what to do; the others stream.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  KAFKA_BROKERS=broker:9092 cdc-relay run --routes relay.toml --admin-addr 0.0.0.0:9600")]
pub struct RunConfig {
    #[command(flatten)]
    pub routes: RoutesArgs,
    /// Where /health, /ready and /metrics are served.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:9600", value_name = "ADDR:PORT")]
    pub admin_addr: SocketAddr,
    /// Names by which they may be asked for, besides those of the loopback: `relay.internal` with any port,
    /// `10.0.0.7:9600` with that one.
    #[arg(long, env = "ADMIN_HOSTS", value_name = "HOST,…", value_delimiter = ',')]
    pub admin_hosts: Vec<Name>,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub kafka: Brokers,
    #[command(flatten)]
    pub amqp: AmqpArgs,
}

pub fn execute(config: &RunConfig) -> Outcome {
    let routes = super::wiring::routes(&config.routes, &config.amqp)?;
    serve(config, routes)?;
    Ok(Ending::Fine)
}

#[tokio::main(worker_threads = 1)]
async fn serve(config: &RunConfig, routes: Routes) -> Result<()> {
    listener::tls::install_provider();
    let listener = tokio::net::TcpListener::bind(config.admin_addr).await.context("ADMIN_ADDR")?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        token.cancel();
    });
    let sinks = SinkClients { kafka: &config.kafka, amqp: &config.amqp };
    let admin = Admin { socket: config.tls.socket(listener), hosts: config.admin_hosts.clone() };
    super::wiring::run(&sinks, routes, admin, shutdown).await
}
