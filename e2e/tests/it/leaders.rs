//! The pool of a service follows the Postgres that takes writes and whose commits end, believes no commit that no standby has, and
//! shows no row of one.
//!
//! * Each test has servers of its own, which it freezes.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use saga::postgres::{Client, Pool, confirm_visible, guarded_pool, pool, reachable};
use stack::layout::{Layout, PORTS};
use stack::servers::Server;
use stack::spec::Spec;
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::WAIT_TIMEOUT;

/// The last base of ports that a test has looked at.
static LOOKED_AT: AtomicU16 = AtomicU16::new(0);

/// A Postgres that ends with the test, and its data with it.
struct Postgres {
    layout: Layout,
    child: Child,
}

impl Postgres {
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("e2e-postgres-{}", Uuid::new_v4().simple()));
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        // Above the ports of stacks that tests start. No two look at the same ones: what is free is taken a moment later.
        let bases = (28_000..32_000).step_by(usize::from(PORTS));
        let bases = bases.filter(|base| LOOKED_AT.fetch_max(*base, Ordering::Relaxed) < *base);
        let layouts = bases.map(|base| Layout::new(Some(folder.clone()), base).unwrap());
        let free = |layout: &Layout| Server::Postgres.ports().iter().all(|port| is_free(layout.port(*port)));
        let layout = layouts.into_iter().find(free).expect("a free port");
        let mut specs = Server::Postgres.alone(&layout).unwrap();
        let child = spawn(&specs.pop().unwrap());
        let postgres = Self { layout, child };
        postgres.until_ready().await;
        postgres
    }

    /// Restarts it as a standby and promotes it: it writes the next timeline.
    async fn promote(&mut self) {
        let _gone = kill_process(Pid::from_child(&self.child), Signal::INT);
        self.child.wait().unwrap();
        let standby = self.layout.postgres_data().join("standby.signal");
        self.layout.write_for_server(&standby, "").unwrap();
        self.child = spawn(&Server::Postgres.alone(&self.layout).unwrap().pop().unwrap());
        self.until_ready().await;
        let admin = pool(&self.url(), 1, "test").unwrap().get().await.unwrap();
        assert!(admin.query_one("select pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
    }

    async fn until_ready(&self) {
        let until = Instant::now() + WAIT_TIMEOUT;
        while !Server::Postgres.ready(&self.layout) {
            assert!(Instant::now() < until, "Postgres does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn url(&self) -> String {
        stack::environment::variables(&self.layout).unwrap()["POSTGRES_ADMIN_URL"].clone()
    }

    /// All of its processes: each backend has a session of its own.
    fn signal(&self, signal: Signal) {
        let parent = self.child.id();
        let children =
            Command::new("ps").args(["-o", "pid=", "--ppid", &parent.to_string()]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let pids = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
        for pid in std::iter::once(parent.cast_signed()).chain(pids) {
            // One of them may have ended meanwhile.
            let _gone = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        // Immediate shutdown: the children end with it.
        let _gone = kill_process(Pid::from_child(&self.child), Signal::QUIT);
        let _ended = self.child.wait();
        for folder in [&self.layout.data, &self.layout.dir] {
            let _removed = std::fs::remove_dir_all(folder);
        }
    }
}

fn spawn(spec: &Spec) -> Child {
    let [program, arguments @ ..] = spec.argv.as_slice() else { panic!("no command") };
    let log = std::fs::OpenOptions::new().append(true).create(true).open(&spec.log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&spec.cwd).env_clear().envs(spec.environment("e2e"));
    if let Some(uid) = spec.uid {
        command.gid(uid).uid(uid);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// The URL of both, in this order, with the login of the first.
fn url_of(first: &Postgres, second: &Postgres) -> String {
    let address = |url: String| url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let (url, second) = (first.url(), address(second.url()));
    let (before, database) = url.rsplit_once('/').unwrap();
    format!("{before},{second}/{database}?target_session_attrs=read-write")
}

/// Two clusters, with one login: to the pool they are one that was promoted.
async fn one_login(first: &Postgres, second: &Postgres) {
    let url = first.url();
    let login = url.split_once("://").unwrap().1.split_once('@').unwrap().0;
    let password = login.split_once(':').unwrap().1;
    let admin = pool(&second.url(), 1, "test").unwrap().get().await.unwrap();
    admin.batch_execute(&format!("alter role postgres password '{password}'")).await.unwrap();
}

async fn port(client: &Client) -> String {
    client.query_one("show port", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_is_left_once_another_takes_writes_and_its_statements_fail() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    one_login(&first, &second).await;
    let pool = pool(&url_of(&first, &second), 2, "test").unwrap();
    let client = pool.get().await.unwrap();
    let before = port(&client).await;
    // A server that is slow to answer at first is passed over.
    let frozen =
        [&first, &second].into_iter().find(|server| server.url().contains(&format!(":{before}/"))).unwrap();
    let waiting = tokio::spawn(async move { client.query_one("select pg_sleep(60)", &[]).await.map(drop) });
    frozen.signal(Signal::STOP);
    let statement = timeout(WAIT_TIMEOUT, waiting).await.expect("the frozen host is left").unwrap();
    assert!(statement.as_ref().is_err_and(tokio_postgres::Error::is_closed), "{statement:?}");
    let client = pool.get().await.unwrap();
    assert_ne!(port(&client).await, before);
    // The one before wakes up, and nobody goes back to it.
    frozen.signal(Signal::CONT);
    let another = pool.get().await.unwrap();
    assert_ne!(port(&another).await, before);
    drop((client, another));
    pool.close();
}

/// Makes commits wait for a standby of this name, or for none.
async fn wait_for_standby(admin: &Client, name: &str) {
    admin.batch_execute("set synchronous_commit = local").await.unwrap();
    admin.batch_execute(&format!("alter system set synchronous_standby_names = '{name}'")).await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let until = Instant::now() + WAIT_TIMEOUT;
    while admin.query_one("show synchronous_standby_names", &[]).await.unwrap().get::<_, String>(0) != name {
        assert!(Instant::now() < until, "the setting does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both answer and take writes, and the commits of one do not end.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_its_standbys_have_left_is_left_for_one_that_was_promoted_after_it_and_for_no_other() {
    let (first, mut second) = (Postgres::start().await, Postgres::start().await);
    second.promote().await;
    let admin_of = async |postgres: &Postgres| pool(&postgres.url(), 1, "test").unwrap().get().await.unwrap();
    let (first_admin, second_admin) = (admin_of(&first).await, admin_of(&second).await);
    one_login(&first, &second).await;
    let url = url_of(&first, &second);
    // A setting comes to each session at its next statement.
    let commit_while = async |client: &Client, holds: &AtomicBool| {
        while holds.load(Ordering::Relaxed) {
            client.batch_execute("select pg_logical_emit_message(true, '', '')").await?;
        }
        Ok::<(), tokio_postgres::Error>(())
    };
    let always = AtomicBool::new(true);

    let (service, client) = at(&first, &url).await;
    wait_for_standby(&first_admin, "nobody").await;
    let committed = timeout(WAIT_TIMEOUT, commit_while(&client, &always)).await.expect("the host is left");
    assert!(committed.as_ref().is_err_and(tokio_postgres::Error::is_closed), "{committed:?}");
    drop(client);
    let client = service.get().await.unwrap();
    assert_eq!(port(&client).await, port(&second_admin).await);
    wait_for_standby(&first_admin, "").await;

    wait_for_standby(&second_admin, "nobody").await;
    let is_unseen = AtomicBool::new(true);
    let looked_at = async {
        let sessions = "select sessions from pg_stat_database where datname = current_database()";
        let sessions = async || first_admin.query_one(sessions, &[]).await.unwrap().get::<_, i64>(0);
        let (before, until) = (sessions().await, Instant::now() + WAIT_TIMEOUT);
        while sessions().await < before + 2 {
            assert!(Instant::now() < until, "nobody looks whether the other host was promoted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        is_unseen.store(false, Ordering::Relaxed);
        wait_for_standby(&second_admin, "").await;
    };
    let committing = async { commit_while(&client, &is_unseen).await.expect("the other host is older") };
    tokio::join!(committing, looked_at);
    drop(client);
    service.close();
}

/// A pool of both hosts that is at this one. A server that is slow to answer at first is passed over.
async fn at(postgres: &Postgres, url: &str) -> (Pool, Client) {
    let until = Instant::now() + WAIT_TIMEOUT;
    loop {
        let service = pool(url, 2, "test").unwrap();
        let client = service.get().await.unwrap();
        if postgres.url().contains(&format!(":{}/", port(&client).await)) {
            return (service, client);
        }
        assert!(Instant::now() < until, "the first host is passed over again and again");
    }
}

async fn pid(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// Cancels a commit once it waits for a standby: no time-out of a statement does that.
async fn cancel_waiting(admin: &Client, pid: i32) {
    let cancel =
        "select pg_cancel_backend(pid) from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'";
    let until = Instant::now() + WAIT_TIMEOUT;
    while admin.query(cancel, &[&pid]).await.unwrap().is_empty() {
        assert!(Instant::now() < until, "no commit waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_for_a_standby_was_cancelled_is_not_believed_and_its_row_not_shown() {
    let postgres = Postgres::start().await;
    let admin_url = postgres.url();
    sql::bootstrap(&admin_url, &sql::Passwords::from_fn(|role| format!("e2e-{role}"))).await.unwrap();
    sql::create_database(&admin_url, sql::Database::Balance, "balance").await.unwrap();
    let url = sql::database_url(&admin_url, "balance", "balance_svc", "e2e-balance_svc").unwrap();
    let admin = pool(&admin_url, 1, "test").unwrap().get().await.unwrap();
    let guarded = guarded_pool(&url, 2, "balance-svc").unwrap();
    let client = guarded.get().await.expect("there are no standbys");
    let other_instance = guarded_pool(&url, 1, "balance-svc").unwrap();
    let other = other_instance.get().await.unwrap();
    wait_for_standby(&admin, "nobody").await;
    let insert = "insert into accounts (user_id, available, held) values (gen_random_uuid(), 0, 0)";
    let until = Instant::now() + WAIT_TIMEOUT;
    // The setting comes to each session at its next statement.
    let inserting = async {
        loop {
            let inserted = client.execute(insert, &[]).await;
            if inserted.is_err() || Instant::now() > until {
                break inserted;
            }
        }
    };
    let (inserted, ()) = tokio::join!(inserting, cancel_waiting(&admin, pid(&client).await));
    assert!(inserted.as_ref().is_err_and(tokio_postgres::Error::is_closed), "{inserted:?}");
    drop(client);
    let away = reachable(&guarded).await.unwrap_err();
    assert!(away.contains("no synchronous standby confirms"), "{away}");
    // The other instance lost no connection. It sees the row, and cannot acknowledge it.
    let count = "select count(*) from accounts";
    let rows: i64 = other.query_one(count, &[]).await.unwrap().get(0);
    assert!(rows >= 1);
    let (confirmed, ()) = tokio::join!(confirm_visible(&other), cancel_waiting(&admin, pid(&other).await));
    assert!(confirmed.is_err());
    // Once the standbys have all of it, and here nobody waits for any, the row is there.
    wait_for_standby(&admin, "").await;
    let client = guarded.get().await.expect("the doubt is settled");
    confirm_visible(&client).await.unwrap();
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), rows);
    drop((client, other, admin));
    guarded.close();
    other_instance.close();
}
