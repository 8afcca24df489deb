//! The certificates of an encrypted stack: an authority of its own, and one certificate for each program that listens.
//!
//! * A stack that has an authority is encrypted: each of its listeners speaks TLS and nothing else.
//! * Every certificate is for `localhost` and 127.0.0.1. The authority is no use elsewhere, and its key stays in the folder.
//! * `openssl` makes them, so that this program needs no cryptography of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;

/// The programs that listen. Ours share one, and exporters do.
const NAMES: [&str; 9] =
    ["postgres", "kafka", "rabbitmq", "redis", "haproxy", "smtp", "collector", EXPORTERS, SERVICES];
pub const SERVICES: &str = "services";
pub const EXPORTERS: &str = "exporters";

/// A certificate and its key, as files among the secrets of the stack.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What the certificates say.
const CONFIG: &str = "[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
";

/// Makes all of them, in a folder that is moved into place when it is whole.
///
/// # Errors
/// When `openssl` is missing or fails, or the folder cannot be written.
pub fn make(layout: &Layout) -> Result<()> {
    let target = layout.tls();
    let fresh = target.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    fs::write(fresh.join("openssl.cnf"), CONFIG)?;
    let new_key = "-config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256";
    let authority =
        format!("req -x509 {new_key} -extensions authority -days 3650 -keyout ca.key -out ca.pem");
    openssl(&fresh, &authority, &["-subj", "/CN=Coro stack"])?;
    for name in NAMES {
        let subject = format!("/CN={name}");
        openssl(
            &fresh,
            &format!("req -new {new_key} -keyout {name}.key -out {name}.csr"),
            &["-subj", &subject],
        )?;
        let sign = format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days 3650 -extfile openssl.cnf \
             -extensions server -out {name}.pem"
        );
        openssl(&fresh, &sign, &[])?;
    }
    fs::rename(&fresh, &target).with_context(|| format!("cannot make {}", target.display()))
}

/// The files of one program.
pub fn of(layout: &Layout, name: &str) -> Certificate {
    let file = |extension: &str| layout.tls().join(format!("{name}.{extension}"));
    Certificate { certificate: file("pem"), key: file("key") }
}

/// Copies the files of a server, and the authority, to where its user can read them: `tls.crt`, `tls.key`, `tls.pem` with
/// both, and `ca.pem`.
///
/// # Errors
/// When one cannot be read or written.
pub fn give(layout: &Layout, name: &str, home: &Path) -> Result<()> {
    let Certificate { certificate, key } = of(layout, name);
    let (certificate, key) = (read(&certificate)?, read(&key)?);
    layout.write_for_server(&home.join("tls.crt"), &certificate)?;
    layout.write_for_server(&home.join("tls.key"), &key)?;
    layout.write_for_server(&home.join("tls.pem"), &format!("{key}{certificate}"))?;
    give_authority(layout, home)
}

/// Copies the authority alone, for a server that only connects: `ca.pem`.
///
/// # Errors
/// When it cannot be read or written.
pub fn give_authority(layout: &Layout, home: &Path) -> Result<()> {
    layout.write_for_server(&home.join("ca.pem"), &read(&layout.authority())?)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn openssl(folder: &Path, words: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(words.split_whitespace()).args(more).stdin(Stdio::null());
    let output = command.output().context("openssl cannot be run: apt-get install openssl")?;
    if !output.status.success() {
        bail!("openssl {words} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_certificate_of_the_authority() {
        let dir = std::env::temp_dir().join(format!("stack-certificates-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        assert!(!layout.is_encrypted());
        make(&layout).unwrap();
        assert!(layout.is_encrypted());
        for name in NAMES {
            let file = of(&layout, name).certificate.display().to_string();
            let verify = format!("verify -CAfile ca.pem -verify_ip 127.0.0.1 -purpose sslserver {file}");
            openssl(&layout.tls(), &verify, &[]).unwrap();
            let other = format!("verify -CAfile ca.pem -verify_hostname elsewhere {file}");
            assert!(openssl(&layout.tls(), &other, &[]).is_err(), "{name} has every name");
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
