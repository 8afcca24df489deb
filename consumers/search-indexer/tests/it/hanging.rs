//! Stands before OpenSearch, and hangs from a moment on: connections stay open, and nothing is answered any more.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::WAIT_TIMEOUT;

pub struct Hanging {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// A request has this text in it.
    trigger: String,
    /// How many such requests there were, and the one that it hangs at.
    seen: watch::Sender<u32>,
    at: u32,
}

impl Hanging {
    /// Hangs at the request of this number that has `trigger` in it.
    pub async fn at(server: &str, trigger: String, number: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = server.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
        let state = Arc::new(State { trigger, seen: watch::Sender::new(0), at: number });
        let hanging = Self { address, state: state.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let upstream = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(state.clone().relay(client, upstream));
            }
        });
        hanging
    }

    /// Waits until it hangs.
    pub async fn hung(&self) {
        let mut seen = self.state.seen.subscribe();
        let hung = seen.wait_for(|seen| *seen >= self.state.at);
        tokio::time::timeout(WAIT_TIMEOUT, hung).await.expect("it hangs").unwrap();
    }
}

impl State {
    async fn relay(self: Arc<Self>, client: TcpStream, upstream: TcpStream) {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), upstream.into_split());
        let requests = async {
            // The end of what was read before, in which a trigger may have begun.
            let (mut read, mut tail) = (vec![0; 64 * 1024], Vec::new());
            while let Ok(count @ 1..) = from_client.read(&mut read).await {
                tail.extend_from_slice(&read[..count]);
                let trigger = self.trigger.as_bytes();
                let found = tail.windows(trigger.len()).filter(|window| *window == trigger).count();
                tail.drain(..tail.len().saturating_sub(trigger.len() - 1));
                self.seen.send_modify(|seen| *seen += u32::try_from(found).unwrap());
                self.stay_while_hung().await;
                if to_server.write_all(&read[..count]).await.is_err() {
                    return;
                }
            }
        };
        let answers = async {
            let mut read = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from_server.read(&mut read).await {
                self.stay_while_hung().await;
                if to_client.write_all(&read[..count]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = requests => {}, () = answers => {} }
    }

    /// Returns at once before the moment, and never after it.
    async fn stay_while_hung(&self) {
        if *self.seen.borrow() >= self.at {
            std::future::pending::<()>().await;
        }
    }
}
