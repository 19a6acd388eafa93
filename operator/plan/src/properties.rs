//! `server.properties` of one node: what the operator decides, then what the manifest says. Called when a node's ConfigMap
//! is built; it never lets a manifest set a key that the operator owns.

use std::fmt::Write as _;

use crate::identity::Connections;
use crate::placement::Layout;
use crate::validate::{Node, RackSource, ValidCluster};

/// The port of the listener that is always there.
pub const INTERNAL_PORT: i32 = 9092;
/// The port of the quorum's listener.
pub const CONTROLLER_PORT: i32 = 9090;
/// The port of the listener over which brokers reach each other, where they do not by the one that is always there.
pub const REPLICATION_PORT: i32 = 9091;
/// The port of `/livez`, `/readyz` and `/metrics`.
pub const HEALTH_PORT: i32 = 9404;

/// Where the Secret with the node's certificate is mounted, as a folder: only then do its files change with the Secret.
pub const CERTIFICATES_FOLDER: &str = "/etc/gregor-certificates";
/// The file and the key in the Secret with the node's private key and certificate.
pub const KEY_STORE: &str = "keystore.pem";
/// The file and the key in the Secret with the authorities that the node trusts.
pub const TRUST_STORE: &str = "ca.crt";

/// Where the node's disk is mounted, by the volume's name.
pub fn mount_path(volume: &str) -> String {
    format!("/var/lib/gregor/{volume}")
}

/// The log directory on the disk: a folder of its own, because a fresh volume may hold `lost+found`.
pub fn log_dir(volume: &str) -> String {
    format!("{}/logs", mount_path(volume))
}

/// Defaults that follow from how many brokers there are, and that a manifest may change: three replicas where there is room, and
/// one of them may be away. Controllers get them too, as it is they that create topics.
fn defaults(brokers: usize) -> [(&'static str, usize); 5] {
    let replicas = brokers.clamp(1, 3);
    let in_sync = replicas.saturating_sub(1).max(1);
    [
        ("default.replication.factor", replicas),
        ("min.insync.replicas", in_sync),
        ("offsets.topic.replication.factor", replicas),
        ("transaction.state.log.min.isr", in_sync),
        ("transaction.state.log.replication.factor", replicas),
    ]
}

/// A broker waits for a quorum as long as it takes: one that gave up would be started again later each time. Plaintext clusters of an
/// older release keep the file that they have, as a changed one would restart them.
const REGISTRATION_TIMEOUT: &str = "initial.broker.registration.timeout.ms";

/// The whole file.
pub fn render(cluster: &ValidCluster, layout: &Layout, node: &Node, connections: Connections) -> String {
    let mut text = String::from("# Written by gregor-operator; a change here is overwritten.\n");
    let mut line = |key: &str, value: &str| {
        writeln!(text, "{key}={}", escape(value)).expect("writing to a String cannot fail");
    };
    let host = &node.host;
    let controllers: Vec<String> =
        layout.controllers().map(|controller| format!("{}:{CONTROLLER_PORT}", controller.host)).collect();
    let mut listeners = Vec::new();
    let mut advertised = Vec::new();
    let among_nodes = if connections.are_tls() {
        ["INTERNAL:PLAINTEXT", "REPLICATION:SSL", "CONTROLLER:SSL"].as_slice()
    } else {
        &["INTERNAL:PLAINTEXT", "CONTROLLER:PLAINTEXT"]
    };
    let mut protocols: Vec<String> = among_nodes.iter().map(ToString::to_string).collect();
    if node.is_broker() {
        listeners.push(format!("INTERNAL://:{INTERNAL_PORT}"));
        advertised.push(format!("INTERNAL://{host}:{INTERNAL_PORT}"));
    }
    if node.is_broker() && connections.are_tls() {
        listeners.push(format!("REPLICATION://:{REPLICATION_PORT}"));
        advertised.push(format!("REPLICATION://{host}:{REPLICATION_PORT}"));
    }
    if node.is_controller() {
        listeners.push(format!("CONTROLLER://:{CONTROLLER_PORT}"));
        advertised.push(format!("CONTROLLER://{host}:{CONTROLLER_PORT}"));
    }
    for listener in &node.listeners {
        let name = listener.kafka_name();
        listeners.push(format!("{name}://:{}", listener.port));
        advertised.push(format!("{name}://{}:{}", listener.advertised_host, listener.advertised_port));
        protocols.push(format!("{name}:PLAINTEXT"));
    }
    line("process.roles", &node.roles_text());
    line("node.id", &node.id.to_string());
    line("controller.listener.names", "CONTROLLER");
    line("controller.quorum.bootstrap.servers", &controllers.join(","));
    if node.is_broker() {
        line("inter.broker.listener.name", if connections.are_tls() { "REPLICATION" } else { "INTERNAL" });
    }
    line("listener.security.protocol.map", &protocols.join(","));
    line("listeners", &listeners.join(","));
    line("advertised.listeners", &advertised.join(","));
    line("log.dirs", &log_dir(&node.volume.name));
    if connections.are_tls() {
        // A broker has no controllers' listener of its own, and dials those of others by its keys.
        let among_nodes = [("controller", true), ("replication", node.is_broker())];
        for (listener, _) in among_nodes.into_iter().filter(|(_, is_used)| *is_used) {
            let mut of_listener = |key: &str, value: &str| line(&format!("listener.name.{listener}.ssl.{key}"), value);
            of_listener("client.auth", "required");
            of_listener("enabled.protocols", "TLSv1.3");
            of_listener("keystore.type", "PEM");
            of_listener("keystore.location", &format!("{CERTIFICATES_FOLDER}/{KEY_STORE}"));
            of_listener("truststore.type", "PEM");
            of_listener("truststore.location", &format!("{CERTIFICATES_FOLDER}/{TRUST_STORE}"));
        }
    }
    // A rack that comes from the Kubernetes node is known only when the pod has one: it is an argument of the pod.
    if let Some(RackSource::Named(rack)) = node.rack.as_ref().filter(|_| node.is_broker()) {
        line("broker.rack", rack);
    }
    if node.is_broker() && connections.are_tls() && !cluster.config.contains_key(REGISTRATION_TIMEOUT) {
        line(REGISTRATION_TIMEOUT, &i32::MAX.to_string());
    }
    for (key, value) in defaults(layout.brokers().count()) {
        if !cluster.config.contains_key(key) {
            line(key, &value.to_string());
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
