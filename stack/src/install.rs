//! What the machine lacks, and how to get it: the distribution's packages, after asking.
//!
//! Nothing that is installed becomes a system service: while apt runs, packages are told not to start anything
//! and Postgres not to make a cluster, and what was installed does not start at boot; what was there before is there afterwards, also when interrupted.

use std::ffi::OsStr;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::output::{Progress, Step};
use crate::program::find_program;
use crate::servers::java::java;
use crate::servers::{
    Server, collector, etcd, exporters, kafka, opensearch, patroni, postgres, rabbitmq, redis, smtp, zipkin,
};

/// Something that must be there, and the packages that bring it: the first one the distribution knows is taken.
struct Need {
    what: &'static str,
    packages: &'static [&'static str],
}

const JAVA_PACKAGES: &[&str] = &[
    "openjdk-17-jre-headless",
    "openjdk-21-jre-headless",
    "openjdk-25-jre-headless",
    "default-jre-headless",
];

/// OpenSearch 2 does not start on later ones.
const OLD_JAVA_PACKAGES: &[&str] = &["openjdk-17-jre-headless", "openjdk-21-jre-headless"];

/// Redis 8 is under the AGPL, and whoever packages it has Valkey too; where there is no Valkey, Redis is older.
const REDIS_PACKAGES: &[&str] = &["valkey-server", "redis-server"];

/// Older distributions have both in one.
const ETCD_PACKAGES: &[&str] = &["etcd-server", "etcd"];

/// Programs and headers that building our services takes, and the program that makes certificates.
const PROGRAMS: [(&str, &str); 5] = [
    ("cmake", "cmake"),
    ("g++", "g++"),
    ("make", "make"),
    ("pkg-config", "pkg-config"),
    ("openssl", "openssl"),
];
const HEADERS: [(&str, &str); 3] =
    [("curl/curl.h", "libcurl4-openssl-dev"), ("openssl/ssl.h", "libssl-dev"), ("zlib.h", "zlib1g-dev")];

/// Exporters; each is called as its package is.
const EXPORTERS: [&str; 3] = [exporters::NODE, exporters::POSTGRES, exporters::REDIS];

/// What the machine is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Stack,
    /// `cargo stack test`, which runs apps and subscribers in other languages, the tools of those who develop them, issuers of
    /// tokens, and a browser.
    Tests,
    /// `cargo stack test --all`, which runs Keycloak as well.
    AllTests,
}

fn missing(layout: &Layout, purpose: Purpose) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |there: bool, what, packages| {
        if !there {
            needs.push(Need { what, packages });
        }
    };
    need(postgres::programs().is_some(), "PostgreSQL 15 or newer", &["postgresql"]);
    if layout.is_ha() {
        need(find_program(etcd::PROGRAM).is_some(), "etcd", ETCD_PACKAGES);
        need(
            patroni::downloaded(layout) || find_program("python3").is_some_and(has_venv),
            "Python with venv (for Patroni)",
            &["python3-venv"],
        );
    }
    need(rabbitmq::program().is_some() && find_program("epmd").is_some(), "RabbitMQ", &["rabbitmq-server"]);
    need(redis::program().is_some(), "Redis or Valkey", REDIS_PACKAGES);
    need(find_program("haproxy").is_some(), "HAProxy", &["haproxy"]);
    need(find_program("prometheus").is_some(), "Prometheus", &["prometheus"]);
    need(java(&kafka::JAVA).is_some(), "Java 17 or newer", JAVA_PACKAGES);
    let with_search = Server::of(layout).contains(&Server::OpenSearch);
    if with_search {
        need(java(&opensearch::JAVA).is_some(), "Java 17 to 23 (for OpenSearch)", OLD_JAVA_PACKAGES);
    }
    let with_traces = Server::of(layout).contains(&Server::Zipkin);
    let with_exporters = Server::of(layout).contains(&Server::NodeExporter);
    let downloaded = kafka::downloaded(layout)
        && (!with_search || opensearch::downloaded(layout))
        && (!with_traces || zipkin::downloaded(layout))
        && (!with_exporters || kafka::agent::downloaded(layout));
    need(downloaded || find_program("mvn").is_some(), "Maven (to download servers)", &["maven"]);
    if with_traces {
        need(collector::built(layout) || collector::go().is_some(), "Go (for the collector)", &["golang-go"]);
    }
    if with_exporters {
        for program in &EXPORTERS {
            need(find_program(program).is_some(), program, std::slice::from_ref(program));
        }
    }
    if Server::of(layout).contains(&Server::Smtp) {
        need(smtp::program().is_some(), "aiosmtpd", &["python3-aiosmtpd"]);
    }
    for (program, package) in &PROGRAMS {
        need(find_program(program).is_some(), program, std::slice::from_ref(package));
    }
    for (header, package) in &HEADERS {
        need(header_is_there(header), header, std::slice::from_ref(package));
    }
    if purpose != Purpose::Stack {
        need(find_program("curl").is_some(), "curl", &["curl"]);
        need(find_program("npm").is_some(), "npm", &["npm"]);
        need(has_venv("python3"), "Python with venv", &["python3-venv"]);
        let alertmanager =
            ["amtool", "prometheus-alertmanager"].iter().all(|name| find_program(name).is_some());
        need(alertmanager, "Alertmanager, with amtool", &["prometheus-alertmanager"]);
        let browsers = ["chromium", "chromium-browser", "google-chrome"];
        need(browsers.iter().any(|name| find_program(name).is_some()), "Chromium", &["chromium"]);
        need(Path::new("/usr/share/fonts/truetype").is_dir(), "fonts", &["fonts-liberation"]);
        need(find_program("kcat").is_some(), "kcat", &["kcat"]);
    }
    if purpose == Purpose::AllTests {
        need(find_program("mvn").is_some(), "Maven (to download Keycloak)", &["maven"]);
    }
    needs
}

fn has_venv(python: impl AsRef<OsStr>) -> bool {
    let mut python = Command::new(python);
    python.args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

fn header_is_there(header: &str) -> bool {
    let architecture = Path::new("/usr/include").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    [Path::new("/usr/include").to_owned(), architecture].iter().any(|folder| folder.join(header).is_file())
}

/// Whether nobody sits at the terminal who could be asked.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}

/// Installs what is missing; asks first, unless `yes`.
///
/// # Errors
/// When something is missing that cannot be installed here; the message names it.
pub fn ensure(layout: &Layout, purpose: Purpose, yes: bool, progress: &Progress) -> Result<()> {
    let needs = missing(layout, purpose);
    if needs.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = needs.iter().map(|need| need.what).collect();
    progress.line(&format!("Missing: {}", names.join(", ")));
    if find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here to install {}: install what is missing, then run this again",
            names.join(", ")
        );
    }
    let root = rustix::process::geteuid().is_root();
    if needs.iter().any(|need| !need.packages.iter().any(|package| known(package))) {
        progress.step("apt", |_| Ok(refresh(root)))?;
    }
    let packages: Vec<&str> = needs.iter().map(|need| choose(need.packages)).collect();
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !root && find_program("sudo").is_none() {
        bail!("neither root nor sudo: ask someone to run\n\n    {line}\n");
    }
    progress.line(&format!("    {}{line}", if root { "" } else { "sudo " }));
    if !yes && !confirmed()? {
        bail!(
            "nothing was installed, since the answer was no; the stack cannot start without these packages"
        );
    }
    progress.step("apt", |step| install(&packages, root, step))?;
    let left: Vec<&str> = missing(layout, purpose).iter().map(|need| need.what).collect();
    if !left.is_empty() {
        bail!("apt-get succeeded, but this is still missing: {}. Install it by hand", left.join(", "));
    }
    Ok(())
}

/// Has apt read its lists, which installs nothing: without them it cannot be said which package is to be had. What
/// cannot be read now is tried again by [`SCRIPT`].
fn refresh(root: bool) -> String {
    let mut command = Command::new(if root { "apt-get" } else { "sudo" });
    if !root {
        command.arg("apt-get");
    }
    let output = command.arg("update").stdin(Stdio::null()).output();
    let read = output.is_ok_and(|output| output.status.success());
    if read { "lists read".to_owned() } else { "no lists".to_owned() }
}

/// Whether apt could install this package.
fn known(package: &str) -> bool {
    let output = Command::new("apt-cache").args(["policy", package]).stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.ends_with("(none)"))
    })
}

/// The first package that can be installed; the first of all when apt has no lists.
fn choose(packages: &'static [&'static str]) -> &'static str {
    let first = packages.first().copied().unwrap_or_default();
    packages.iter().copied().find(|package| known(package)).unwrap_or(first)
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing was installed: there is no terminal to ask on. Run the command above, or pass --yes");
    }
    eprint!("Run it? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// Its arguments are the packages. A trap puts everything back, whatever happens.
const SCRIPT: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
saved=$policy.before-coro
clusters=/etc/postgresql-common/createcluster.d
ours=$clusters/coro-stack.conf
restore() {
    if [ -e "$saved" ]; then mv -f "$saved" "$policy"; else rm -f "$policy"; fi
    rm -f "$ours"
    rmdir --ignore-fail-on-non-empty "$clusters" /etc/postgresql-common 2>/dev/null || true
}
# Left by a run that was killed: the saved file is the original.
if [ ! -e "$saved" ] && [ -e "$policy" ] && ! grep -q coro-stack "$policy"; then cp -p "$policy" "$saved"; fi
trap restore EXIT
trap 'exit 130' INT TERM HUP
# 101: no package may start a service.
printf '#!/bin/sh\n# coro-stack\nexit 101\n' >"$policy"
chmod 755 "$policy"
mkdir -p "$clusters"
echo 'create_main_cluster = false' >"$ours"
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -o DPkg::Lock::Timeout=300 "$@"; }
get() { apt install -y --no-install-recommends "$@"; }
# Not a chain of && and ||: in one of those, `set -e` lets a failure pass.
if ! get "$@"; then
    apt update
    get "$@"
fi
# Just installed for private use: not to be started at the next boot either.
for package in "$@"; do
    case $package in
    redis-server | valkey-server | etcd-server | etcd | rabbitmq-server | haproxy | prometheus | prometheus-*) update-rc.d "$package" disable >/dev/null 2>&1 || true ;;
    esac
done
"#;

fn install(packages: &[&str], root: bool, step: &Step) -> Result<String> {
    let mut command = if root { Command::new("sh") } else { Command::new("sudo") };
    if !root {
        command.arg("sh");
    }
    command.args(["-c", SCRIPT, "sh"]).args(packages).stdin(Stdio::null());
    // sudo asks for the password on the terminal itself.
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut said = Vec::new();
    if let Some(output) = process.stdout.take() {
        for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
            step.now(line.clone());
            said.push(line);
        }
    }
    if !process.wait()?.success() {
        bail!("apt-get failed:\n{}", crate::logs::last_lines(&said.join("\n"), 15));
    }
    Ok(packages.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_valid_shell() {
        let status = Command::new("sh").args(["-n", "-c", SCRIPT]).status().unwrap();
        assert!(status.success());
    }

    /// The script in a folder of its own, with an apt-get that notes what packages would be told.
    fn install_in(folder: &Path, apt: &str) -> std::process::ExitStatus {
        use std::os::unix::fs::PermissionsExt;
        let at = |name: &str| folder.join(name).display().to_string();
        let script = SCRIPT
            .replace("/usr/sbin/policy-rc.d", &at("policy"))
            .replace("/etc/postgresql-common", &at("pg"));
        std::fs::write(folder.join("apt-get"), format!("#!/bin/sh\ncd {}\n{apt}\n", folder.display()))
            .unwrap();
        std::fs::set_permissions(folder.join("apt-get"), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", "redis-server"]).stdout(Stdio::null());
        command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).status().unwrap()
    }

    #[test]
    fn what_was_there_before_is_there_afterwards() {
        const READ_THE_POLICY: &str = "cat policy pg/createcluster.d/*.conf >seen; echo \"$@\" >asked";
        let folder = std::env::temp_dir().join(format!("stack-apt-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();

        assert!(install_in(&folder, READ_THE_POLICY).success());
        assert!(read("seen").contains("exit 101") && read("seen").contains("create_main_cluster = false"));
        assert!(read("asked").contains("install -y --no-install-recommends redis-server"));
        assert!(!folder.join("policy").exists() && !folder.join("pg").exists());

        assert!(!install_in(&folder, "kill -9 $PPID").success());
        assert!(install_in(&folder, READ_THE_POLICY).success());
        assert!(!folder.join("policy").exists(), "what a killed run wrote is not taken for theirs");

        std::fs::write(folder.join("policy"), "theirs").unwrap();
        assert!(!install_in(&folder, "cat policy >seen; exit 100").success());
        assert!(read("seen").contains("exit 101"));
        assert_eq!(read("policy"), "theirs", "also after a failure");

        // apt-get's shell is a grandchild: the script dies before its trap can run, and the next run repairs it.
        assert!(!install_in(&folder, "kill -9 $PPID").success());
        assert!(read("policy").contains("exit 101"));
        assert!(install_in(&folder, READ_THE_POLICY).success());
        assert_eq!(read("policy"), "theirs", "also after a run that was killed");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn where_redis_may_be_under_the_agpl_valkey_is_taken() {
        let place = |name: &str| REDIS_PACKAGES.iter().position(|package| *package == name);
        assert!(place("valkey-server") < place("redis-server"));
    }

    #[test]
    fn an_unknown_package_is_still_named() {
        assert_eq!(choose(&["no-such-package-at-all"]), "no-such-package-at-all");
    }
}
