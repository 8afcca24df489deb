//! A link that can be cut: stands between the relay and a server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

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

    /// Ends all connections and lets no new one through.
    pub fn cut(&self) {
        let _ = self.open.send(false);
    }

    pub fn mend(&self) {
        let _ = self.open.send(true);
    }
}
