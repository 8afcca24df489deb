//! `oidc-provider`: access tokens by RFC 9068, and keys that a test replaces.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::{CLIENT_ID, CLIENT_SECRET, Issuer, free_port};
use crate::harness::WAIT_TIMEOUT;
use crate::tools::Tools;

static TOOLS: Tools = Tools::new("issuers", &[]);

pub struct OidcProvider {
    pub issuer: Issuer,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl OidcProvider {
    /// Starts it with these keys, `ID ALG ID ALG …`; the first one signs.
    pub async fn start(keys: &str) -> Self {
        let port = free_port();
        let mut command = TOOLS.program("node").await;
        command.args(["provider.mjs", &port.to_string(), CLIENT_SECRET]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
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
