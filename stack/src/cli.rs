//! The commands.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::control::{Client, Request};
use crate::extras::Extra;
use crate::layout::Layout;
use crate::output::say;
use crate::process::ProcessId;
use crate::servers::Server;
use crate::services::Instance;
use crate::shards::SHARDS_MAX;
use crate::up::{Extent, Wish, up, wait_for_server, wait_for_service};
use crate::{
    bench, beside, check, compose, down, exec, install, k6, kubernetes, launch, logs, release, rotate, scale,
    shards, status, supervisor, workspace,
};

/// The servers and services of Coro on this machine, as supervised processes.
///
/// STACK_DIR (default .stack) and STACK_PORT (default 21000) choose the stack; several run side by side.
#[derive(Parser)]
#[command(name = "cargo stack", bin_name = "cargo stack")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install what is missing, start everything, make one payment. Again: whatever is not running.
    Up {
        /// Install packages without asking.
        #[arg(long, short)]
        yes: bool,
        /// Also these parts, separated by commas. The stack keeps them: later commands need not name them again.
        #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
        with: Vec<Extra>,
        /// Only the servers and the schemas: what tests of a single service need.
        #[arg(long)]
        servers: bool,
        /// All services, without the payment at the end.
        #[arg(long, conflicts_with = "servers")]
        no_payment: bool,
        /// Encrypt every link, by certificates of an authority of the stack's own. It stays so until `clean`.
        #[arg(long)]
        tls: bool,
        /// A highly available stack: three nodes of Postgres (Patroni, with three members of etcd), of Kafka and of RabbitMQ. It stays
        /// so until `clean`.
        #[arg(long, conflicts_with = "tls")]
        ha: bool,
        /// The users of payments and balance on so many shards, each with a Postgres of its own (docs/SHARDS.md). A stack with fewer gets
        /// more, also while it runs; none is taken away. `drill`, `leader` and `rotate` refuse such a stack.
        #[arg(long, value_name = "COUNT", conflicts_with_all = ["tls", "ha"], value_parser = clap::value_parser!(i64).range(1..=SHARDS_MAX))]
        shards: Option<i64>,
        /// Run the programs of this folder, such as the target/release of another revision, and build nothing. The next `up` is
        /// this revision's again.
        #[arg(long, value_name = "FOLDER", conflicts_with = "servers")]
        programs: Option<PathBuf>,
    },
    /// Stop everything, and check that nothing is left.
    Down,
    /// List every process: since when it runs, and what it uses.
    Status,
    /// Print a log (of a server, a service, `supervisor` or `build`).
    Logs {
        name: String,
        /// Keep printing what comes.
        #[arg(long, short)]
        follow: bool,
        #[arg(long, short = 'n', default_value_t = 200)]
        lines: usize,
    },
    /// Stop and start one, and wait until it is ready.
    Restart {
        name: String,
        /// A service: from the program of its name in this folder, such as the target/release of another revision. It stays with
        /// that one until the next `up`.
        #[arg(long, value_name = "FOLDER")]
        to: Option<PathBuf>,
        /// A relay: a second one stands by meanwhile, so that events wait for no start. Both are of --to, or else of this revision.
        #[arg(long)]
        beside: bool,
    },
    /// Give every login of the running stack another secret (docs/runbooks/rotation.md has the steps around it).
    Rotate {
        /// End the time in which old secrets still hold, where a server or a listener takes two.
        #[arg(long)]
        end: bool,
    },
    /// Give a service so many instances, one after the other, while the stack runs; no request fails.
    ///
    /// Of payments-svc, balance-svc, processor-svc, search-indexer, notifier and fraud, from 1 to 8. The stack keeps the number until
    /// `clean`. Again: whatever is not as it was asked for.
    Scale {
        name: String,
        #[arg(value_name = "NUMBER")]
        instances: usize,
    },
    /// Stop one; it stays stopped.
    Stop { name: String },
    /// Start one that was stopped or ended, and wait until it is ready.
    Start { name: String },
    /// SIGKILL. A service comes back by itself, a server by `start`.
    Kill { name: String },
    /// Run a command of a service's program with the service's environment, e.g. `exec cdc-relay doctor`.
    Exec {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The whole life of one payment, and where it stands still.
    Explain { payment_id: String },
    /// Every invariant over everything there is. Exits 1 when one is violated, 2 when it could not be made.
    #[command(disable_help_flag = true)]
    Audit {
        /// See `audit --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// 200 payments, while Postgres, the relay and the processor are killed under them; then the audit.
    Demo,
    /// A seeded load under kills and outages, compared with its plan, then the audit (`--help`: its options).
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Break one thing, wait for its alert, and mend it by the scripts of its runbook (`--help`: the drills).
    #[command(disable_help_flag = true)]
    Drill {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Lose nodes of a highly available stack under load: of Postgres, etcd, Kafka, RabbitMQ (`--help`: what can be lost).
    #[command(disable_help_flag = true)]
    Leader {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure the saga, the relay or clients that follow their payments (`bench NAME --help`: the options of that benchmark).
    Bench {
        #[command(subcommand)]
        name: bench::Benchmark,
    },
    /// Put a load of compose/k6/profiles.json on the stack, then audit it (`--help`: the loads, and what can be changed).
    #[command(disable_help_flag = true)]
    Load {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The same loads with k6, e.g. `k6 smoke`. Arguments go to k6, e.g. `-e RATE=100`.
    ///
    /// The k6 on the PATH is used; it is under the AGPL and never installed. Without one the exit code is 69.
    K6 {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check everything: format, lints, unit tests, then tests against a stack of their own.
    Test(check::TestArgs),
    /// For containers: what compose/compose.yaml mounts, and the rules of its Kafka.
    Compose {
        #[command(subcommand)]
        action: compose::Action,
    },
    /// For Kubernetes: the secrets that compose/kubernetes takes from the cluster's store.
    Kubernetes {
        #[command(subcommand)]
        action: kubernetes::Action,
    },
    /// Bring the stack down and remove its data.
    Clean {
        #[arg(long, short)]
        yes: bool,
    },
    #[command(name = "__supervise", hide = true)]
    Supervise {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        base_port: u16,
        /// Go down when this process is gone.
        #[arg(long)]
        owner: Option<i32>,
    },
    #[command(name = "__launch", hide = true)]
    Launch(launch::LaunchArgs),
}

/// Runs the command given on the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Action::Audit { arguments } = &cli.command {
        return audit(arguments);
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            if error.is::<k6::Absent>() { ExitCode::from(k6::EXIT_UNAVAILABLE) } else { ExitCode::FAILURE }
        }
    }
}

/// Its exit code is an answer: 1 says that something is violated, so whatever else goes wrong is 2.
fn audit(arguments: &[String]) -> ExitCode {
    const EXIT_NOT_EXAMINED: u8 = 2;
    let all: Vec<&str> = ["audit"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let looked = Layout::from_env().and_then(|layout| workspace::coroctl_status(&layout, &all));
    if let Err(error) = &looked {
        eprintln!("\n{error:#}");
    }
    // Without a code it was killed.
    let code = looked.ok().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(EXIT_NOT_EXAMINED))
}

fn run(action: Action) -> Result<()> {
    match action {
        Action::Launch(args) => return launch::run(&args),
        Action::Supervise { dir, base_port, owner } => {
            let owner = owner.map(|pid| ProcessId::of(pid).context("the owner is gone")).transpose()?;
            return supervisor::run(&Layout::new(Some(dir), base_port)?, owner);
        }
        Action::Test(args) => return check::run(&args),
        Action::Compose { action } => return compose::run(&action),
        Action::Kubernetes { action } => return kubernetes::run(&action),
        _ => {}
    }
    let layout = Layout::from_env()?;
    match action {
        Action::Up { yes, with, servers, no_payment, tls, ha, shards, programs } => {
            let extent = match (servers, no_payment) {
                (true, _) => Extent::Servers,
                (false, true) => Extent::Services,
                (false, false) => Extent::Payment,
            };
            let programs = programs.map(|folder| folder.canonicalize()).transpose().context("--programs")?;
            let yes = yes || install::in_ci();
            let shards = shards.map(usize::try_from).transpose()?;
            up(&layout, &Wish { extent, with, yes, owner: None, tls, ha, shards, programs })
        }
        Action::Down => down::down(&layout),
        Action::Status => show_status(&layout),
        Action::Logs { name, follow, lines } => logs::show(&layout.log(&name), lines, follow),
        Action::Restart { name, to, beside } => restart(&layout, &name, to, beside),
        Action::Rotate { end: false } => rotate::begin(&layout),
        Action::Rotate { end: true } => rotate::end(&layout),
        Action::Scale { name, instances } => scale::run(&layout, &name, instances),
        Action::Start { name } => control(&layout, &name, |name| Request::Start { name }, true),
        Action::Stop { name } => control(&layout, &name, |name| Request::Stop { name }, false),
        Action::Kill { name } => control(&layout, &name, |name| Request::Kill { name }, false),
        Action::Exec { name, arguments } => exec::run(&layout, &name, &arguments),
        Action::Explain { payment_id } => workspace::coroctl(&layout, &["explain", &payment_id]),
        Action::Demo => demo(&layout),
        Action::Chaos { arguments } => with_e2e(&layout, "chaos", &arguments),
        Action::Drill { arguments } => of_one_postgres(&layout, "drill", &arguments),
        Action::Leader { arguments } => of_one_postgres(&layout, "leader", &arguments),
        Action::Load { arguments } => with_e2e(&layout, "load", &arguments),
        Action::Bench { name } => bench::run(&layout, &name),
        Action::K6 { name, arguments } => k6::run(&layout, &name, &arguments),
        Action::Clean { yes } => down::clean(&layout, yes),
        Action::Launch(_)
        | Action::Supervise { .. }
        | Action::Test(_)
        | Action::Audit { .. }
        | Action::Compose { .. }
        | Action::Kubernetes { .. } => Ok(()),
    }
}

/// Of a service by the program in a folder, if one is named; of a relay beside a second one, if that is wanted.
fn restart(layout: &Layout, name: &str, to: Option<PathBuf>, beside: bool) -> Result<()> {
    if to.is_none() && !beside {
        return control(layout, name, |name| Request::Restart { name }, true);
    }
    let instance = Instance::named(name)
        .with_context(|| format!("{name} is no service of ours, so no release has another program of it"))?;
    let spec = release::spec(layout, instance, &to.unwrap_or_else(|| workspace::folder(layout)))?;
    if beside {
        return beside::restart(layout, instance, spec);
    }
    release::replace(&mut Client::of_running(layout)?, spec)?;
    wait_for_service(layout, instance)
}

/// Runs a command of the program of loads and faults that stops, starts or restores the one Postgres.
fn of_one_postgres(layout: &Layout, verb: &str, arguments: &[String]) -> Result<()> {
    if !arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        shards::ensure_one(layout, verb)?;
    }
    with_e2e(layout, verb, arguments)
}

fn with_e2e(layout: &Layout, verb: &str, arguments: &[String]) -> Result<()> {
    let all = std::iter::once(verb).chain(arguments.iter().map(String::as_str));
    workspace::e2e(layout, &all.collect::<Vec<_>>())
}

/// On whatever runs already; a stack that is not up is brought up first.
fn demo(layout: &Layout) -> Result<()> {
    if Client::connect(&layout.socket()).is_none() {
        let (extent, yes) = (Extent::Services, install::in_ci());
        let (with, programs) = (Vec::new(), None);
        let wish = Wish { extent, with, yes, owner: None, tls: false, ha: false, shards: None, programs };
        up(layout, &wish)?;
    }
    workspace::e2e(layout, &["demo"])
}

fn show_status(layout: &Layout) -> Result<()> {
    let children = Client::of_running(layout)?.status()?;
    say(&status::table(&children));
    let down: Vec<&str> =
        children.iter().filter(|child| child.id.is_none()).map(|child| child.name.as_str()).collect();
    if !down.is_empty() {
        bail!("these do not run: {}. `cargo stack up` starts them", down.join(", "));
    }
    Ok(())
}

fn control(layout: &Layout, name: &str, request: impl FnOnce(String) -> Request, wait: bool) -> Result<()> {
    let mut client = Client::of_running(layout)?;
    client.send(&request(name.to_owned()))?;
    if !wait {
        return Ok(());
    }
    if let Some(server) = Server::named(name) {
        return wait_for_server(layout, server, &mut client);
    }
    match Instance::named(name) {
        Some(instance) => wait_for_service(layout, instance),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_behind_a_command_explain_their_own_options() {
        for line in [
            "bench saga --help",
            "bench relay -h",
            "bench waiters --help",
            "bench shard-away --help",
            "chaos --help",
            "drill --help",
            "load --help",
            "audit --help",
        ] {
            let words = ["cargo stack"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}: answered here");
        }
        for line in ["bench --help", "bench", "bench floor", "--help"] {
            let words = ["cargo stack"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
