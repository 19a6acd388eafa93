//! Keys of `server.properties` that a manifest may not set, and why: the validation asks before any node is built.

/// Keys that the operator sets itself or that contradict what it does.
const OWNED_KEYS: [&str; 21] = [
    "advertised.listeners",
    "auto.include.jmx.reporter",
    "broker.id",
    "broker.id.generation.enable",
    "broker.rack",
    "config.providers",
    "control.plane.listener.name",
    "controller.listener.names",
    "controller.quorum.auto.join.enable",
    "early.start.listeners",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dir",
    "log.dirs",
    "metadata.log.dir",
    "node.id",
    "process.roles",
    "reserved.broker.max.id",
    "security.inter.broker.protocol",
    "zookeeper.connect",
];

/// Whole families of such keys.
const OWNED_PREFIXES: [&str; 2] = ["controller.quorum.bootstrap.", "controller.quorum.voters"];

/// Families of keys for listeners with encryption, authentication or authorization, which this release does not serve.
const UNSERVED_PREFIXES: [&str; 6] =
    ["authorizer.", "listener.name.", "sasl.", "security.providers", "ssl.", "super.users"];

/// Why a manifest may not set this key, if so.
pub fn refusal(key: &str) -> Option<String> {
    if OWNED_KEYS.contains(&key) || OWNED_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return Some(format!(
            "{key} is set by the operator: use the fields of spec for nodes, listeners, racks and disks"
        ));
    }
    if UNSERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return Some(format!(
            "{key} is not served by this release, whose listeners for clients are plaintext: take it out"
        ));
    }
    None
}
