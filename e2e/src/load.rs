//! `cargo stack load NAME`: a profile of `compose/k6/profiles.json` by the benchmarks' own generator, and then the audit.
//!
//! * k6 puts the same profiles on a stack, where there is a k6: `cargo stack k6 NAME`.
//! * A load fails on one payment that is dropped, refused, not settled, or that ends otherwise than planned; on a limit that is
//!   crossed; and on whatever the audit finds, be it one cent.
//! * A load that looks for the knee goes beyond it: it passes when no payment ended otherwise than planned and the audit
//!   finds nothing, and reports the knee.

mod figures;
mod generator;
mod profile;
mod report;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::audit;
use coroctl::client::Client;
use coroctl::stack::Stack;

use crate::bench::caller::Address;
use crate::bench::endings::Endings;
use crate::bench::users::Users;
use generator::Generator;
use profile::{Changes, Profile};
use report::Report;

/// How long the audit waits until nothing is under way: what a step beyond the knee left behind takes its time.
const QUIESCENCE_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Options {
    /// smoke, load, stress, spike, soak or hot-account.
    name: String,
    /// Other payments per second, for a load of one step.
    #[arg(long)]
    rate: Option<u32>,
    /// Other seconds, for each step.
    #[arg(long)]
    seconds: Option<u32>,
    /// Other users.
    #[arg(long)]
    users: Option<usize>,
    /// Report latencies, and do not judge them: on a machine that does other things, too.
    #[arg(long)]
    without_limits: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the load and the audit, prints, and fails when either did.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let Options { name, rate, seconds, users, without_limits, json } = options;
    let profile = Profile::named(name, Changes { rate: *rate, seconds: *seconds, users: *users })?;
    ensure!(
        stack.edge_url.starts_with("http://"),
        "the generator speaks no TLS: put the load on a stack without --tls"
    );
    tracing::info!(load = name, users = profile.users, "{}", profile.purpose);
    let users = Users::fund(&Client::new(stack)?, profile.users, profile.zipf).await?;
    let brokers = stack.kafka_brokers.clone();
    let endings =
        tokio::task::spawn_blocking(move || Endings::follow(&brokers)).await.context("reader")??;
    let address = Address::new(&stack.edge_url, &stack.demo_service_id)?;
    let generator = Arc::new(Generator::new(profile.clone(), address, users, endings));
    let steps = tokio::select! {
        steps = generator.run() => steps?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    tracing::info!("audit");
    let accepted = generator.accepted();
    let findings =
        audit::run_with(stack, &audit::Options { accepted, wait: QUIESCENCE_TIMEOUT, ..Default::default() })
            .await?;
    let report = Report::new(name, profile, steps, !without_limits, &findings);
    report.print(*json)?;
    report.verdict()
}
