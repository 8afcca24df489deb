//! etcd: the store in which the nodes of Patroni agree who is the primary. Three members, any one of which may be away.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Node;
use super::text;
use crate::layout::{Layout, Port};
use crate::program::find_program;
use crate::spec::{HELPER_TIER, Spec};

/// Its program in every distribution.
pub const PROGRAM: &str = "etcd";

pub fn client_port(node: Node) -> Port {
    node.of([Port::Etcd1, Port::Etcd2, Port::Etcd3])
}

fn peer_port(node: Node) -> Port {
    node.of([Port::EtcdPeer1, Port::EtcdPeer2, Port::EtcdPeer3])
}

pub fn ports(node: Node) -> &'static [Port] {
    node.of([
        &[Port::Etcd1, Port::EtcdPeer1],
        &[Port::Etcd2, Port::EtcdPeer2],
        &[Port::Etcd3, Port::EtcdPeer3],
    ])
}

pub fn name(node: Node) -> &'static str {
    node.of(["etcd-1", "etcd-2", "etcd-3"])
}

/// Addresses of all members, for clients.
pub fn addresses(layout: &Layout) -> String {
    Node::addresses(layout, client_port)
}

pub fn prepare(layout: &Layout, node: Node) -> Result<Vec<Spec>> {
    let program = find_program(PROGRAM).context("etcd is not installed")?;
    let home = layout.server_dir(name(node))?;
    keep_to_port(&home, layout.base_port)?;
    let url = |port| format!("http://127.0.0.1:{}", layout.port(port));
    let members = Node::ALL.map(|member| format!("{}={}", name(member), url(peer_port(member)))).join(",");
    let (client, peer) = (url(client_port(node)), url(peer_port(node)));
    let options = [
        ("name", name(node).to_owned()),
        ("data-dir", text(&home.join("data"))),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", members),
        // Stacks side by side must not take each other for one cluster.
        ("initial-cluster-token", format!("coro-{}", layout.base_port)),
        // Two cores run everything: a heartbeat that is late is no leader that is gone.
        ("heartbeat-interval", "200".to_owned()),
        ("election-timeout", "2000".to_owned()),
    ];
    let mut argv = vec![text(&program)];
    argv.extend(options.map(|(option, value)| format!("--{option}={value}")));
    let mut spec = super::spec(layout, name(node), home, argv, client_port(node));
    // Patroni hands its role over when it stops, and needs it for that.
    spec.tier = HELPER_TIER;
    Ok(vec![spec])
}

/// Its data name the addresses of all members, which would wait for each other at the ports of before.
fn keep_to_port(home: &Path, port: u16) -> Result<()> {
    let file = home.join("port");
    match fs::read_to_string(&file) {
        Ok(made) => ensure!(
            made == port.to_string(),
            "the data of etcd were made with STACK_PORT={made}, and hold for that port alone: use it, or remove the stack \
             (`cargo stack clean`)"
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::write(&file, port.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_hold_for_the_port_that_they_were_made_with() {
        let home = std::env::temp_dir().join(format!("stack-etcd-{}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        keep_to_port(&home, 21_000).unwrap();
        keep_to_port(&home, 21_000).unwrap();
        let refused = keep_to_port(&home, 22_000).unwrap_err().to_string();
        assert!(refused.contains("STACK_PORT=21000"), "{refused}");
        fs::remove_dir_all(home).unwrap();
    }
}
