//! Where a stack keeps its things, and which ports are its own. Everything follows from two variables:
//! `STACK_DIR` (default `.stack` in the workspace) and `STACK_PORT` (default 21000).

mod port;

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};

pub use self::port::{EPHEMERAL_FIRST, FURTHER_FIRST, PORTS, Port};
use crate::shards::kept::Kept;

/// The unprivileged user of servers when the stack is run by root (`nobody`).
const SERVER_UID: u32 = 65534;
const DEFAULT_PORT: u16 = 21_000;
/// The name of the secret that operators show to admin listeners.
pub const ADMIN_TOKEN: &str = "admin-token";

/// The listeners of an encrypted stack that speak HTTP without TLS: the pages of Prometheus and Zipkin, which nothing of Coro
/// reads, OpenSearch, which has TLS by a plugin only, and the exporter of Kafka, which takes key stores of Java only.
const PLAIN: [Port; 6] = [
    Port::Prometheus,
    Port::Search,
    Port::Zipkin,
    Port::KafkaMetrics,
    Port::KafkaMetrics2,
    Port::KafkaMetrics3,
];

/// One stack on this machine.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The workspace.
    pub root: PathBuf,
    /// The stack's own folder: logs, secrets, `env`, the socket.
    pub dir: PathBuf,
    /// Where servers keep their data; outside `dir` for root, since another user must reach it.
    pub data: PathBuf,
    /// Downloads, shared by all stacks.
    pub cache: PathBuf,
    pub base_port: u16,
    /// The user servers run as, when not the caller's.
    pub uid: Option<u32>,
}

impl Layout {
    /// Reads `STACK_DIR` and `STACK_PORT`.
    ///
    /// # Errors
    /// When a value is unusable; nothing has been touched then.
    pub fn from_env() -> Result<Self> {
        Self::new(
            env::var_os("STACK_DIR").map(PathBuf::from),
            base_port(env::var("STACK_PORT").ok().as_deref())?,
        )
    }

    /// A stack in `dir` (relative to the workspace) with ports from `base_port`.
    ///
    /// # Errors
    /// When the workspace cannot be found or the folder cannot be made.
    pub fn new(dir: Option<PathBuf>, base_port: u16) -> Result<Self> {
        let root = workspace_root()?;
        let dir = root.join(dir.unwrap_or_else(|| PathBuf::from(".stack")));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let privileged = rustix::process::geteuid().is_root();
        let home = || env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
        let (data, cache, uid) = if privileged {
            let data = Path::new("/var/lib/coro-stack").join(format!("{:016x}", fnv1a(&dir)));
            (data, PathBuf::from("/var/cache/coro"), Some(SERVER_UID))
        } else {
            let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
            (dir.join("data"), cache.join("coro"), None)
        };
        Ok(Self { root, dir, data, cache, base_port, uid })
    }

    pub fn port(&self, port: Port) -> u16 {
        self.base_port + port.offset()
    }

    /// Whether each listener speaks TLS and nothing else, but for `PLAIN`.
    pub fn is_encrypted(&self) -> bool {
        self.authority().is_file()
    }

    /// Whether it is highly available: three nodes of Postgres, of Kafka and of RabbitMQ instead of one of each.
    pub fn is_ha(&self) -> bool {
        self.ha_file().is_file()
    }

    fn ha_file(&self) -> PathBuf {
        self.dir.join("ha")
    }

    /// How many shards payments and balance have, as `up --shards` chose; one where it was never asked for.
    pub fn shard_count(&self) -> usize {
        Kept::of(self).count
    }

    /// Holds what the stack keeps of its shards, where there are several.
    pub fn shards_file(&self) -> PathBuf {
        self.dir.join("shards")
    }

    /// Makes the stack highly available, before it has data. It stays so until `clean`.
    ///
    /// # Errors
    /// When it has single servers with data, or is encrypted: the nodes speak no TLS yet.
    pub fn choose_ha(&self) -> Result<()> {
        if self.is_ha() {
            return Ok(());
        }
        ensure!(!self.is_encrypted(), "`--ha` and `--tls` do not go together yet");
        ensure!(self.shard_count() == 1, "`--ha` and several shards do not go together yet");
        let single = [self.postgres_data(), self.data.join("kafka/logs"), self.data.join("rabbitmq/mnesia")];
        ensure!(
            !single.iter().any(|data| data.exists()),
            "this stack has single servers with data: `cargo stack clean`, then `cargo stack up --ha`"
        );
        write_private(&self.ha_file(), "")
    }

    /// The folder of an encrypted stack's certificates.
    pub fn tls(&self) -> PathBuf {
        self.dir.join("tls")
    }

    /// The certificate of the authority of an encrypted stack, which clients trust.
    pub fn authority(&self) -> PathBuf {
        self.tls().join("ca.pem")
    }

    /// The URL of something that listens on one of its ports.
    pub fn http(&self, port: Port, path: &str) -> String {
        let scheme = if self.is_encrypted() && !PLAIN.contains(&port) { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}{path}", self.port(port))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// The folder of a server's data, made if missing and owned by the user it runs as.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn server_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.data.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        self.give(&path)?;
        Ok(path)
    }

    /// Writes a file for a server; only its user can read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_for_server(&self, path: &Path, content: &str) -> Result<()> {
        write_as(path, content, self.uid)
    }

    /// Reads a configuration file that `cargo stack` and containers share.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn compose_file(&self, name: &str) -> Result<String> {
        let path = self.root.join("compose").join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn give(&self, path: &Path) -> Result<()> {
        if let Some(uid) = self.uid {
            chown(path, Some(uid), Some(uid)).with_context(|| format!("cannot chown {}", path.display()))?;
        }
        Ok(())
    }

    /// The supervisor's socket. A path longer than the kernel's limit moves to the temporary folder.
    pub fn socket(&self) -> PathBuf {
        self.short(self.dir.join("control.sock"), "sock")
    }

    /// The socket by which the edge is asked and changed while it runs. Who may use it may do everything there.
    pub fn edge_socket(&self) -> PathBuf {
        self.short(self.data.join("haproxy/edge.sock"), "edge")
    }

    /// This path of a socket, if it is not too long. HAProxy makes its own under a longer name first.
    fn short(&self, path: PathBuf, kind: &str) -> PathBuf {
        const BYTES_MAX: usize = 90;
        if path.as_os_str().len() < BYTES_MAX {
            return path;
        }
        env::temp_dir().join(format!("coro-stack-{:016x}.{kind}", fnv1a(&self.dir)))
    }

    /// The list of how many instances of a service there are, where that is another number than at first.
    pub fn scale_file(&self) -> PathBuf {
        self.dir.join("scale")
    }

    /// The mark of every process of this stack, in its environment.
    pub fn member(&self) -> String {
        self.dir.display().to_string()
    }

    /// The data of the one Postgres, or of the first shard's.
    pub fn postgres_data(&self) -> PathBuf {
        self.cluster("postgres")
    }

    /// The data of the Postgres of this name.
    pub fn cluster(&self, server: &str) -> PathBuf {
        self.data.join(server).join("cluster")
    }

    /// The list of the parts that are there on request.
    pub fn extras_file(&self) -> PathBuf {
        self.dir.join("extras")
    }

    /// The folder that holds a file for each secret.
    pub fn secrets(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// The secret of one login or listener, `name`: made at the first use, kept in a file of its own where only the
    /// caller can read it. No two logins share one, and whoever asks, at whatever moment, gets the same: servers are
    /// prepared side by side, and one may write a password that another signs in with.
    ///
    /// # Errors
    /// When it can be neither read nor written.
    pub fn secret(&self, name: &str) -> Result<String> {
        match self.secret_made(name) {
            Some(secret) => Ok(secret),
            None => self.alone_with_secrets(|| self.secret_or_new(name)),
        }
    }

    /// Makes this secret anew; returns the one before.
    ///
    /// # Errors
    /// As [`Self::secret`].
    pub fn renew_secret(&self, name: &str) -> Result<String> {
        self.alone_with_secrets(|| {
            let before = self.secret_or_new(name)?;
            write_private(&self.secrets().join(name), &random()?)?;
            Ok(before)
        })
    }

    fn secret_made(&self, name: &str) -> Option<String> {
        let secret = fs::read_to_string(self.secrets().join(name)).ok()?;
        // An empty file is one that a power cut left behind.
        Some(secret.trim().to_owned()).filter(|secret| !secret.is_empty())
    }

    fn secret_or_new(&self, name: &str) -> Result<String> {
        if let Some(secret) = self.secret_made(name) {
            return Ok(secret);
        }
        let secret = random()?;
        write_private(&self.secrets().join(name), &secret)?;
        Ok(secret)
    }

    /// Of all threads and processes, one at a time makes secrets of this stack.
    fn alone_with_secrets<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let folder = self.secrets();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = self.dir.join("secrets.lock");
        let describe = || format!("cannot lock {}", path.display());
        let mut lock = fd_lock::RwLock::new(fs::File::create(&path).with_context(describe)?);
        let _alone = lock.write().with_context(describe)?;
        make()
    }

    /// The token that operators show to admin listeners.
    ///
    /// # Errors
    /// As [`Self::secret`].
    pub fn admin_token(&self) -> Result<String> {
        self.secret(ADMIN_TOKEN)
    }

    /// The tokens that admin listeners take, with commas between: while the token is changed, the one before holds too.
    ///
    /// # Errors
    /// As [`Self::secret`].
    pub fn admin_tokens(&self) -> Result<String> {
        let token = self.admin_token()?;
        let before = fs::read_to_string(self.admin_token_before()).unwrap_or_default();
        Ok(if before.is_empty() { token } else { format!("{token},{before}") })
    }

    /// The file of the token before, for as long as it holds too.
    pub fn admin_token_before(&self) -> PathBuf {
        self.secrets().join(format!("{ADMIN_TOKEN}.before"))
    }
}

/// 128 bits that nobody can guess, in hexadecimal digits.
///
/// # Errors
/// When the system has none.
pub fn random() -> Result<String> {
    let mut bytes = [0_u8; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that only its owner can read, all of it or nothing.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    write_as(path, content, None)
}

/// The same for this user, who can read it from when it has its name: a server that watches it may look only once.
fn write_as(path: &Path, content: &str, uid: Option<u32>) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    // Its own, since servers are prepared side by side and some have files in common.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let describe = || format!("cannot write {}", path.display());
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        if uid.is_some() {
            fchown(&file, uid, uid)?;
        }
        fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _absent = fs::remove_file(&temporary);
    }
    written.with_context(describe)
}

/// The base port: room for all of a stack's ports, below the range the kernel hands out.
fn base_port(value: Option<&str>) -> Result<u16> {
    let Some(value) = value else { return Ok(DEFAULT_PORT) };
    match value.parse::<u16>() {
        Ok(port) if (1024..=EPHEMERAL_FIRST - PORTS).contains(&port) => Ok(port),
        _ => bail!("STACK_PORT={value}: a number from 1024 to {} is needed", EPHEMERAL_FIRST - PORTS),
    }
}

/// Whether a folder is the root of a workspace like this one.
pub fn is_root(folder: &&Path) -> bool {
    folder.join("stack/Cargo.toml").is_file() && folder.join("sql/Cargo.toml").is_file()
}

/// The folder of the workspace: above the current folder, else where this program was built.
fn workspace_root() -> Result<PathBuf> {
    let here = env::current_dir()?;
    if let Some(root) = here.ancestors().find(is_root) {
        return Ok(root.to_owned());
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(is_root);
    built.map(Path::to_owned).context("run this inside the workspace")
}

/// A hash that is the same in every release: data folders are named by it.
fn fnv1a(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stay_below_what_the_kernel_hands_out() {
        assert_eq!(base_port(None).unwrap(), 21_000);
        assert_eq!(base_port(Some("32568")).unwrap(), 32_568);
        for bad in ["32569", "80", "x", "", "-1", "70000"] {
            assert!(base_port(Some(bad)).unwrap_err().to_string().contains("STACK_PORT"), "{bad}");
        }
    }

    #[test]
    fn ports_are_fixed_offsets() {
        let layout = Layout {
            root: "/w".into(),
            dir: "/w/.stack".into(),
            data: "/d".into(),
            cache: "/c".into(),
            base_port: 22_000,
            uid: None,
        };
        assert_eq!(layout.port(Port::Edge), 22_000);
        assert_eq!(layout.port(Port::Postgres), 22_001);
        assert_eq!(layout.port(Port::Redis), 22_011);
        assert_eq!(layout.port(Port::Gateway), 22_027);
        assert_eq!(layout.socket(), Path::new("/w/.stack/control.sock"));
        let deep = Layout { dir: format!("/{}", "x".repeat(120)).into(), ..layout };
        assert!(deep.socket().as_os_str().len() < 100);
    }

    #[test]
    fn a_file_that_many_write_is_whole_and_nothing_is_left_beside_it() {
        let folder = env::temp_dir().join(format!("stack-written-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, content) = (folder.join("file"), "x".repeat(10_000));
        let gate = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    gate.wait();
                    for _ in 0..50 {
                        write_private(&path, &content).unwrap();
                        assert_eq!(fs::read_to_string(&path).unwrap().len(), content.len());
                    }
                });
            }
        });
        write_private(&folder.join("nowhere/file"), &content).unwrap_err();
        fs::create_dir(folder.join("taken")).unwrap();
        write_private(&folder.join("taken"), &content).unwrap_err();
        let mut left: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["file", "taken"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_stack_with_data_of_single_servers_is_not_made_highly_available() {
        for data in ["postgres/cluster", "kafka/logs", "rabbitmq/mnesia"] {
            let dir = env::temp_dir().join(format!("stack-single-{}", std::process::id()));
            let layout = Layout::new(Some(dir.clone()), 22_000).unwrap();
            let layout = Layout { data: dir.join("data"), ..layout };
            fs::create_dir_all(layout.data.join(data)).unwrap();
            let refused = layout.choose_ha().unwrap_err().to_string();
            assert!(refused.contains("single servers") && !layout.is_ha(), "{data}: {refused}");
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn all_who_ask_for_a_secret_at_its_first_use_get_the_same() {
        let folder = env::temp_dir().join(format!("stack-secrets-{}", std::process::id()));
        for round in 0..50 {
            let layout = Layout {
                data: folder.clone(),
                uid: None,
                ..Layout::new(Some(folder.clone()), 22_000).unwrap()
            };
            let name = format!("redis-{round}");
            if round % 2 == 1 {
                fs::create_dir_all(layout.secrets()).unwrap();
                fs::write(layout.secrets().join(&name), "").unwrap();
            }
            let gate = std::sync::Barrier::new(8);
            let ask = || {
                gate.wait();
                layout.secret(&name).unwrap()
            };
            let mut secrets: Vec<String> = std::thread::scope(|scope| {
                let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
                asked.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            secrets.push(layout.secret(&name).unwrap());
            secrets.dedup();
            assert_eq!(secrets.len(), 1, "round {round}: {secrets:?}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn two_folders_two_names() {
        assert_ne!(fnv1a(Path::new("/a/.stack")), fnv1a(Path::new("/a/.stack-test")));
        assert_eq!(fnv1a(Path::new("")), 0xcbf2_9ce4_8422_2325);
    }
}
