//! Loopback addresses that a cluster of a test has for itself.
//!
//! A port that was free when it was picked may be taken, by a connection that somebody makes, before its node starts again. The
//! loopback network has sixteen million addresses, and no connection leaves from any of them but the first: with an address for
//! each node, every node has whatever ports it likes for as long as the test runs.

use std::sync::atomic::{AtomicU8, Ordering};

/// Addresses for the nodes of one cluster; nobody else has them while this process runs.
#[derive(Debug, Clone, Copy)]
pub struct Loopback {
    process: u32,
    network: u8,
}

impl Loopback {
    /// Other addresses than any that this process was given before; 250 clusters have some each.
    pub fn new() -> Self {
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        Self { process: std::process::id(), network: 2 + NETWORKS.fetch_add(1, Ordering::Relaxed) % 250 }
    }

    /// The address of a node from 1 to 9.
    pub fn host(self, node: u8) -> String {
        debug_assert!((1..=9).contains(&node), "there are nine nodes at most");
        let (first, second) = (self.process % 250, self.process / 250 % 20);
        format!("127.{}.{}.{}", 1 + first, self.network, 10 * second + u32::from(node))
    }
}

impl Default for Loopback {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_node_of_every_cluster_has_an_address_of_its_own_that_it_can_listen_on() {
        let (one, other) = (Loopback::new(), Loopback::new());
        let hosts: Vec<_> = (1..=9).flat_map(|node| [one.host(node), other.host(node)]).collect();
        for (at, host) in hosts.iter().enumerate() {
            assert!(!hosts[..at].contains(host), "{host} twice");
            TcpListener::bind((host.as_str(), 0)).unwrap();
        }
    }
}
