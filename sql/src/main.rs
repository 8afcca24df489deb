//! `migrate`: creates the roles and databases of the services and applies missing migrations.
//!
//! * Running it again changes nothing but the passwords, which it sets.
//! * A bad or missing setting ends it with status 64, before it connects.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// `EX_USAGE` of sysexits.h.
const EXIT_BAD_SETTING: u8 = 64;

/// Creates roles and databases and applies missing migrations.
///
/// Each role has a password of its own, from the environment: PAYMENTS_SVC_PASSWORD, BALANCE_SVC_PASSWORD,
/// PROCESSOR_SVC_PASSWORD, NOTIFIER_PASSWORD, FRAUD_PASSWORD, CORO_RELAY_PASSWORD, CORO_CHECKER_PASSWORD,
/// CORO_MONITOR_PASSWORD. They are set anew at every run. Each, and ADMIN_DATABASE_URL, may be in a file instead, which NAME_FILE
/// names.
#[derive(Parser)]
#[command(name = "migrate")]
struct Args {
    /// A superuser's URL of the maintenance database.
    #[arg(long, env = "ADMIN_DATABASE_URL", hide_env_values = true)]
    admin_database_url: String,
    /// Also add the demo services.
    #[arg(long)]
    seed: bool,
    /// Only create the roles and set their passwords.
    #[arg(long = "passwords", conflicts_with = "seed")]
    roles_only: bool,
    /// The password that the superuser of the URL gets at the end. Without it, it keeps its own.
    #[arg(long, env = "ADMIN_NEW_PASSWORD", hide_env_values = true)]
    admin_new_password: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Args = secret_files::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { EXIT_BAD_SETTING.into() } else { 0 })
    });
    let passwords = match sql::Passwords::from_env() {
        Ok(passwords) => passwords,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(EXIT_BAD_SETTING);
        }
    };
    match run(&args, &passwords).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes without a backtrace: readers have changed SQL, not this program.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, passwords: &sql::Passwords) -> Result<()> {
    sql::bootstrap(&args.admin_database_url, passwords).await?;
    if !args.roles_only {
        sql::migrate_all(&args.admin_database_url).await?;
    }
    if args.seed {
        sql::seed(&args.admin_database_url, sql::Database::Payments.name()).await?;
    }
    // Whoever reads the URL from a file has to find the new one there at once, so it is the last thing.
    if let Some(password) = &args.admin_new_password {
        sql::set_own_password(&args.admin_database_url, password).await?;
    }
    Ok(())
}
