//! `migrate`: brings a Postgres cluster to where the services expect it. Running it again changes nothing.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Makes roles and databases and applies the migrations that are missing.
#[derive(Parser)]
#[command(name = "migrate")]
struct Args {
    /// A superuser's URL of the maintenance database.
    #[arg(long, env = "ADMIN_DATABASE_URL", hide_env_values = true)]
    admin_database_url: String,
    /// The password of every role.
    #[arg(long, env = "ROLE_PASSWORD", hide_env_values = true)]
    role_password: String,
    /// Also add the demo services.
    #[arg(long)]
    seed: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, without a backtrace: it is read by people who changed SQL, not this program.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    sql::bootstrap(&args.admin_database_url, &args.role_password).await?;
    sql::migrate_all(&args.admin_database_url).await?;
    if args.seed {
        sql::seed(&args.admin_database_url, sql::Database::Payments.name()).await?;
    }
    Ok(())
}
