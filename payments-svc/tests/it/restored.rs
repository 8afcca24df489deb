//! A backup of a test's database, and the database that is made of it, with the tools of the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use saga::postgres::{self, Pool};
use sql::harness::Harness;
use sql::{Database, Passwords};
use uuid::Uuid;

/// A database in a file, as `pg_dump -Fc` writes it.
pub struct Dump {
    admin_url: String,
    file: PathBuf,
}

/// A database that was made of a dump.
pub struct Restored {
    admin_url: String,
    name: String,
    /// With the rights of the service.
    pub url: String,
    /// Connections that are given though the database is closed.
    pub pool: Pool,
}

impl Restored {
    pub fn dump(harness: &Harness) -> Dump {
        let admin_url = harness.admin_url().to_owned();
        let file = std::env::temp_dir().join(format!("{}.dump", harness.name()));
        let url = of_database(&admin_url, harness.name());
        run(tool("pg_dump").arg("-Fc").arg("--file").arg(&file).args(["-d", &url]));
        Dump { admin_url, file }
    }

    pub async fn finish(self) {
        self.pool.close();
        sql::drop_database(&self.admin_url, &self.name).await.unwrap();
    }
}

impl Dump {
    /// Makes a new database of the dump.
    pub async fn restore(self) -> Restored {
        let Dump { admin_url, file } = self;
        let name = format!("test_restored_{}", Uuid::new_v4().simple());
        let admin = sql::connect(&admin_url).await.unwrap();
        let create = format!("create database {name} owner coro_owner template template0 encoding 'UTF8'");
        admin.batch_execute(&create).await.unwrap();
        let of_superuser = of_database(&admin_url, &name);
        run(tool("pg_restore").args(["--exit-on-error", "-d", &of_superuser]).arg(&file));
        std::fs::remove_file(&file).unwrap();
        let role = Database::Payments.service_role();
        let passwords = Passwords::from_env().unwrap();
        let url = sql::database_url(&admin_url, &name, role, passwords.of(role).unwrap()).unwrap();
        let pool = postgres::pool(&url, 4, "test").unwrap();
        Restored { admin_url, name, url, pool }
    }
}

fn of_database(admin_url: &str, name: &str) -> String {
    let (server, _) = admin_url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// A program of the server that the stack runs.
fn tool(name: &str) -> Command {
    let chosen = std::env::var_os("STACK_POSTGRES").map(|folder| Path::new(&folder).join(name));
    Command::new(chosen.unwrap_or_else(|| name.into()))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
