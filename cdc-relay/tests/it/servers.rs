//! Runs servers of one test, which it may kill, suspend and set back in time.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use stack::layout::{Layout, PORTS, Port};
use stack::servers::{Node, Server};
use stack::spec::Spec;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::harness::connect;

/// Two private Postgres run at a time, or one broker, so that each has the processor to answer in time.
static PERMITS: Semaphore = Semaphore::const_new(2);

/// Waits until a test may run private servers. A Postgres takes one permit, a broker two, and so does a Postgres that has
/// to answer in time. A test takes all of its permits at once: otherwise two tests could wait for each other.
pub async fn permits(count: u32) -> SemaphorePermit<'static> {
    PERMITS.acquire_many(count).await.expect("the semaphore is never closed")
}

/// One server; it ends when dropped, and its data goes with it.
pub struct PrivateServer {
    server: Server,
    layout: Layout,
    specs: Vec<Spec>,
    running: Vec<Child>,
}

impl PrivateServer {
    pub async fn start(server: Server) -> PrivateServer {
        let name = format!("it-{}-{}", server.name(), uuid::Uuid::now_v7().simple());
        let layout = layout(server, &std::env::temp_dir().join(name));
        let specs = server.alone(&layout).expect("a server");
        if server == Server::Kafka(Node::One) {
            // A private server needs no access control.
            let settings = layout.data.join("kafka/server.properties");
            let open = std::fs::read_to_string(&settings).expect("settings")
                + "super.users=User:kafka;User:admin;User:ANONYMOUS\n";
            layout.write_for_server(&settings, &open).expect("settings");
        }
        let mut private = PrivateServer { server, layout, specs, running: Vec::new() };
        private.run().await;
        private
    }

    /// Starts a standby that streams from this Postgres under this name. Its slots are its own.
    pub async fn standby(&self, name: &str) -> PrivateServer {
        let access = self.layout.postgres_data().join("pg_hba.conf");
        let known = std::fs::read_to_string(&access).expect("pg_hba.conf");
        let replication = format!("{known}host replication all 127.0.0.1/32 scram-sha-256\n");
        self.layout.write_for_server(&access, &replication).expect("pg_hba.conf");
        connect(&self.address()).await.batch_execute("select pg_reload_conf()").await.expect("reload");
        let folder = format!("it-{name}-{}", uuid::Uuid::now_v7().simple());
        let layout = layout(self.server, &std::env::temp_dir().join(folder));
        // The superuser's password comes with the data.
        copy(&self.layout.secrets(), &layout.secrets());
        layout.server_dir("postgres").expect("a folder");
        let mut backup = self.tool("pg_basebackup");
        backup.arg("--pgdata").arg(layout.postgres_data()).arg("--dbname").arg(self.address());
        let backup = backup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]).output();
        let backup = backup.expect("pg_basebackup");
        assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
        let settings = layout.postgres_data().join("postgresql.auto.conf");
        let conninfo = std::fs::read_to_string(&settings).expect("postgresql.auto.conf");
        // The walreceiver is called as the cluster.
        let named = format!("{conninfo}\ncluster_name = '{name}'\nhot_standby_feedback = on\n");
        layout.write_for_server(&settings, &named).expect("postgresql.auto.conf");
        let specs = self.server.alone(&layout).expect("a standby");
        let mut standby = PrivateServer { server: self.server, layout, specs, running: Vec::new() };
        standby.run().await;
        standby
    }

    /// Starts an archive of the WAL of this Postgres under this name, which flushes what it receives and says so. Call it after
    /// `standby`, which admits replication.
    pub fn archive(&self, name: &str) -> Child {
        let folder = self.layout.server_dir("archive").expect("a folder");
        let mut archive = self.tool("pg_receivewal");
        archive.arg("--synchronous").arg("--directory").arg(folder).arg("--dbname").arg(self.address());
        archive
            .env("PGAPPNAME", name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pg_receivewal")
    }

    /// Takes over the logical slots of a Postgres, as Patroni copies them. Neither of the two may run.
    pub fn take_slots(&self, primary: &PrivateServer) {
        assert!(self.running.is_empty() && primary.running.is_empty(), "one of them runs");
        let slots = |server: &PrivateServer| server.layout.postgres_data().join("pg_replslot");
        std::fs::remove_dir_all(slots(self)).expect("its slots");
        copy(&slots(primary), &slots(self));
    }

    /// Runs it again after it ended.
    pub async fn run(&mut self) {
        let until = Instant::now() + self.server.start_timeout();
        loop {
            let ended = |child: &mut Child| child.try_wait().expect("wait").is_some();
            if self.running.is_empty() || self.running.iter_mut().any(ended) {
                // This is the first run, or the previous run was still ending.
                self.kill();
                self.running = self.specs.iter().map(spawn).collect();
            }
            if self.server.ready(&self.layout) {
                return;
            }
            let log = self.layout.log(self.server.name());
            assert!(Instant::now() < until, "{} does not start: {}", self.server.name(), log.display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        for mut child in self.running.drain(..) {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }

    /// An immediate shutdown of Postgres: every process ends on the spot, and the next start recovers.
    pub fn crash(&mut self) {
        self.end(Signal::QUIT);
    }

    /// An orderly shutdown.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    fn end(&mut self, signal: Signal) {
        for mut child in self.running.drain(..) {
            kill_process(Pid::from_child(&child), signal).expect("signal");
            child.wait().expect("wait");
        }
    }

    /// Signals all of its processes: SIGSTOP suspends the server, SIGCONT resumes it.
    pub fn signal(&self, signal: Signal) {
        for child in &self.running {
            kill_process_group(Pid::from_child(child), signal).expect("signal");
        }
    }

    /// The server's URL, or a broker's address.
    pub fn address(&self) -> String {
        let variables = stack::environment::variables(&self.layout).expect("addresses");
        let name = match self.server {
            Server::Kafka(_) => "KAFKA_BROKERS",
            Server::RabbitMq(_) => "AMQP_URL",
            _ => "POSTGRES_ADMIN_URL",
        };
        variables[name].clone()
    }

    /// One of the tools beside its program, which finds it.
    pub fn tool(&self, name: &str) -> Command {
        let spec = self.specs.last().expect("a process");
        let program = Path::new(&spec.argv[0]).with_file_name(name);
        let mut command = as_its_user(spec, &program.display().to_string());
        command.envs(spec.environment("it"));
        command
    }

    /// Starts a broker again with a second listener, for TLS, under the name `localhost`; returns its address.
    pub async fn encrypt(&mut self, certificate: &str, key: &str) -> String {
        // A port of the layout whose server does not run.
        let port = self.layout.port(Port::Redis);
        let plain = self.address();
        let (file, more, address) = match self.server {
            Server::Kafka(_) => {
                let (sasl, controller) =
                    (self.layout.port(Port::KafkaSasl), self.layout.port(Port::KafkaController));
                let line = |pem: &str| pem.trim().replace('\n', "\\n");
                let (certificate, key) = (line(certificate), line(key));
                let more = format!(
                    "listeners=PLAINTEXT://{plain},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller},SSL://127.0.0.1:{port}
advertised.listeners=PLAINTEXT://{plain},SASL://127.0.0.1:{sasl},SSL://localhost:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT,SSL:SSL
ssl.keystore.type=PEM
ssl.keystore.certificate.chain={certificate}
ssl.keystore.key={key}
"
                );
                ("server.properties", more, format!("localhost:{port}"))
            }
            Server::RabbitMq(_) => {
                let file = |name: &str| self.layout.data.join("rabbitmq").join(name);
                self.layout.write_for_server(&file("tls.crt"), certificate).expect("certificate");
                self.layout.write_for_server(&file("tls.key"), key).expect("key");
                let more = format!(
                    "listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.certfile = {}
ssl_options.keyfile = {}
ssl_options.verify = verify_none
",
                    file("tls.crt").display(),
                    file("tls.key").display()
                );
                let plain = plain.replacen("amqp://", "amqps://", 1);
                let address = plain.replace(
                    &format!("127.0.0.1:{}", self.layout.port(Port::Amqp)),
                    &format!("localhost:{port}"),
                );
                ("rabbitmq.conf", more, address)
            }
            _ => panic!("not a broker"),
        };
        let folder = self.layout.data.join(self.server.name());
        let settings = std::fs::read_to_string(folder.join(file)).expect(file) + &more;
        self.kill();
        self.layout.write_for_server(&folder.join(file), &settings).expect(file);
        self.run().await;
        address
    }

    /// A file among the data of a Postgres, which only the server reads.
    pub fn put(&self, name: &str, content: &str) -> PathBuf {
        let file = self.layout.postgres_data().join(name);
        self.layout.write_for_server(&file, content).expect(name);
        file
    }

    /// Copies the data of a stopped Postgres, as a backup of the volume does.
    pub fn back_up(&self) -> PathBuf {
        assert!(self.running.is_empty(), "it runs");
        let backup = self.layout.data.join("backup");
        copy(&self.layout.postgres_data(), &backup);
        backup
    }

    /// Puts the copy back in its place.
    pub fn restore(&self, backup: &Path) {
        assert!(self.running.is_empty(), "it runs");
        std::fs::remove_dir_all(self.layout.postgres_data()).expect("remove");
        copy(backup, &self.layout.postgres_data());
    }

    /// Makes the next start of a Postgres begin a new timeline, as a promoted standby does.
    pub fn promote_at_next_start(&self) {
        let signal = self.layout.postgres_data().join("recovery.signal");
        self.layout.write_for_server(&signal, "").expect("recovery.signal");
        let conf = self.layout.postgres_data().join("postgresql.auto.conf");
        let stock = std::fs::read_to_string(&conf).expect("postgresql.auto.conf");
        let restore = format!("{stock}\nrestore_command = 'false'\n");
        self.layout.write_for_server(&conf, &restore).expect("restore_command");
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.layout.data);
            let _ = std::fs::remove_dir_all(&self.layout.dir);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

/// A layout whose ports are free.
fn layout(server: Server, folder: &Path) -> Layout {
    const FIRST: u16 = 24_000;
    const HOW_MANY: u16 = (32_700 - FIRST) / PORTS;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let free = |layout: &Layout| {
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        server.ports().iter().all(|port| free(layout.port(*port)))
    };
    for _ in 0..HOW_MANY {
        // Other test programs may look for ports at the same time: each begins at another place.
        let start = std::process::id() as u16 % HOW_MANY;
        let base = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % HOW_MANY * PORTS;
        let layout = Layout::new(Some(folder.to_owned()), base).expect("layout");
        if free(&layout) {
            return layout;
        }
    }
    panic!("no free ports");
}

fn as_its_user(spec: &Spec, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&spec.cwd).env_clear().stdin(Stdio::null());
    if let Some(uid) = spec.uid {
        command.gid(uid).uid(uid);
    }
    command
}

fn spawn(spec: &Spec) -> Child {
    let [program, arguments @ ..] = spec.argv.as_slice() else { panic!("no command") };
    let log = std::fs::OpenOptions::new().append(true).create(true).open(&spec.log).expect("log");
    let mut command = as_its_user(spec, program);
    command.args(arguments).envs(spec.environment("it")).process_group(0);
    command.stdout(log.try_clone().expect("log")).stderr(log);
    command.spawn().expect("a server")
}
