//! `oidc-provider`: access tokens by RFC 9068, and keys that a test replaces.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{CLIENT_ID, CLIENT_SECRET, Issuer, free_port};
use crate::harness::{WAIT_TIMEOUT, binary};

pub struct OidcProvider {
    pub issuer: Issuer,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl OidcProvider {
    /// Starts it with these keys, `ID ALG ID ALG …`; the first one signs.
    pub async fn start(keys: &str) -> Self {
        let (folder, port) = (tools().await, free_port());
        let mut process = Command::new(folder.join("node"))
            .args(["provider.mjs", &port.to_string(), CLIENT_SECRET])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let (jwks_url, token_url) = (format!("{url}/jwks"), format!("{url}/token"));
        let mut provider = Self {
            issuer: Issuer::new(url, jwks_url, token_url, "at+jwt"),
            input: process.stdin.take().unwrap(),
            output: BufReader::new(process.stdout.take().unwrap()).lines(),
            _process: process,
        };
        provider.has(keys).await;
        provider
    }

    /// Replaces its keys, the withdrawn ones included.
    pub async fn has(&mut self, keys: &str) {
        self.input.write_all(format!("{keys}\n").as_bytes()).await.unwrap();
        let read = async {
            while self.output.next_line().await.unwrap().expect("the provider goes on") != "ready" {}
        };
        timeout(WAIT_TIMEOUT, read).await.expect("the provider takes its keys");
    }

    /// The `sub` of its tokens for client credentials.
    pub fn subject(&self) -> &'static str {
        CLIENT_ID
    }
}

/// The folder with the provider and its tools, installed at the first use.
async fn tools() -> &'static Path {
    static TOOLS: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async || {
        let folder = binary("issuers");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/issuers/install.sh");
        let status = Command::new(script).arg(&folder).status().await.unwrap();
        assert!(status.success(), "{script} failed; it needs npm");
        folder
    };
    TOOLS.get_or_init(install).await
}
