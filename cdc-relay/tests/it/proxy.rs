//! Stands between the relay and a server.
//!
//! * It cuts connections, holds them at a message, or delivers several answers in one piece.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::harness::WAIT_TIMEOUT;

pub struct Proxy {
    pub address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Proxy {
    pub async fn to(server: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (open, state) = watch::channel(true);
        let server = Arc::new(server);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut state, server) = (state.clone(), Arc::clone(&server));
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut upstream) = TcpStream::connect(server.as_str()).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Proxy { address, open }
    }

    /// Ends all connections and refuses new ones.
    pub fn cut(&self) {
        let _ = self.open.send(false);
    }

    pub fn mend(&self) {
        let _ = self.open.send(true);
    }
}

/// Holds a client's messages from the trigger on, until the gate opens. Later clients pass.
pub struct Gate {
    pub address: SocketAddr,
    state: watch::Sender<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    NotYet,
    Now,
    NoMore,
}

impl Gate {
    pub async fn to(server: String, trigger: &'static str) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (state, _) = watch::channel(Held::NotYet);
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(upstream) = TcpStream::connect(server.as_str()).await else { continue };
                let (mut from, mut to) = client.into_split();
                let (mut answers, mut requests) = upstream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut answers, &mut to).await });
                let state = shared.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut buffer).await {
                        let message = &buffer[..length];
                        if message.windows(trigger.len()).any(|part| part == trigger.as_bytes()) {
                            state.send_if_modified(|held| {
                                let first = *held == Held::NotYet;
                                *held = if first { Held::Now } else { *held };
                                first
                            });
                            let _ = state.subscribe().wait_for(|held| *held == Held::NoMore).await;
                        }
                        if requests.write_all(message).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Gate { address, state }
    }

    /// Waits until a client is held.
    pub async fn held(&self) {
        let mut state = self.state.subscribe();
        let held = timeout(WAIT_TIMEOUT, state.wait_for(|held| *held == Held::Now)).await;
        held.expect("a client comes").expect("the gate");
    }

    pub fn open(&self) {
        self.state.send_replace(Held::NoMore);
    }
}

/// Collects the server's answers after the client's trigger until it is silent, and delivers them in one piece.
pub struct Coalescer {
    pub address: SocketAddr,
}

impl Coalescer {
    pub async fn to(server: String, trigger: &'static str) -> Coalescer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(upstream) = TcpStream::connect(server.as_str()).await else { continue };
                let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
                tokio::spawn(Coalescer::carry(client, upstream, trigger));
            }
        });
        Coalescer { address }
    }

    async fn carry(client: TcpStream, upstream: TcpStream, trigger: &'static str) {
        const SILENCE: Duration = Duration::from_millis(500);
        let (mut from, mut to) = client.into_split();
        let (mut answers, mut requests) = upstream.into_split();
        let (announce, triggered) = watch::channel(false);
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                if buffer[..length].windows(trigger.len()).any(|part| part == trigger.as_bytes()) {
                    let _ = announce.send(true);
                }
                if requests.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = answers.read(&mut buffer).await {
            let mut piece = buffer[..length].to_vec();
            while *triggered.borrow()
                && let Ok(Ok(length @ 1..)) = timeout(SILENCE, answers.read(&mut buffer)).await
            {
                piece.extend_from_slice(&buffer[..length]);
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
}
