//! `server.properties` of one node: what the operator decides, then what the manifest says. Called when a node's ConfigMap
//! is built; it never lets a manifest set a key that the operator owns.

use std::fmt::Write as _;

use crate::validate::{Node, ValidCluster};

/// The port of the listener that is always there.
pub const INTERNAL_PORT: i32 = 9092;
/// The port of the quorum's listener.
pub const CONTROLLER_PORT: i32 = 9090;
/// The port of `/livez`, `/readyz` and `/metrics`.
pub const HEALTH_PORT: i32 = 9404;

/// Where the node's disk is mounted, by the volume's name.
pub fn mount_path(volume: &str) -> String {
    format!("/var/lib/gregor/{volume}")
}

/// The log directory on the disk: a folder of its own, because a fresh volume may hold `lost+found`.
pub fn log_dir(volume: &str) -> String {
    format!("{}/logs", mount_path(volume))
}

/// Defaults that a single node needs, and that a manifest may change.
const SINGLE_NODE_DEFAULTS: [(&str, &str); 5] = [
    ("default.replication.factor", "1"),
    ("min.insync.replicas", "1"),
    ("offsets.topic.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.replication.factor", "1"),
];

/// The whole file.
pub fn render(cluster: &ValidCluster, node: &Node) -> String {
    let mut text = String::from("# Written by gregor-operator; a change here is overwritten.\n");
    let mut line = |key: &str, value: &str| {
        writeln!(text, "{key}={}", escape(value)).expect("writing to a String cannot fail");
    };
    let host = &node.host;
    let controller = format!("{host}:{CONTROLLER_PORT}");
    let mut listeners = vec![format!("INTERNAL://:{INTERNAL_PORT}"), format!("CONTROLLER://:{CONTROLLER_PORT}")];
    let mut advertised = vec![format!("INTERNAL://{host}:{INTERNAL_PORT}"), format!("CONTROLLER://{controller}")];
    let mut protocols = vec!["INTERNAL:PLAINTEXT".to_owned(), "CONTROLLER:PLAINTEXT".to_owned()];
    for listener in &node.listeners {
        let name = listener.kafka_name();
        listeners.push(format!("{name}://:{}", listener.port));
        advertised.push(format!("{name}://{}:{}", listener.advertised_host, listener.advertised_port));
        protocols.push(format!("{name}:PLAINTEXT"));
    }
    line("process.roles", "broker,controller");
    line("node.id", &node.id.to_string());
    line("controller.listener.names", "CONTROLLER");
    line("controller.quorum.bootstrap.servers", &controller);
    line("inter.broker.listener.name", "INTERNAL");
    line("listener.security.protocol.map", &protocols.join(","));
    line("listeners", &listeners.join(","));
    line("advertised.listeners", &advertised.join(","));
    line("log.dirs", &log_dir(&node.volume.name));
    if let Some(rack) = &node.rack {
        line("broker.rack", rack);
    }
    for (key, value) in SINGLE_NODE_DEFAULTS {
        if !cluster.config.contains_key(key) {
            line(key, value);
        }
    }
    for (key, value) in &cluster.config {
        line(key, value);
    }
    text
}

/// A value in a properties file: a backslash begins an escape, and leading blanks would be dropped.
fn escape(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\");
    if escaped.starts_with([' ', '\t']) { format!("\\{escaped}") } else { escaped }
}
