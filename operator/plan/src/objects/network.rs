//! How a cluster is reached and protected: Services, the ServiceAccount, the PodDisruptionBudget.

use gregor_operator_api::cluster::ListenerType;
use gregor_operator_api::{KafkaCluster, names};
use serde_json::{Value, json};

use super::{labels, node_labels, owner, owner_of, wanted};
use crate::identity::Connections;
use crate::placement::Layout;
use crate::properties::{CONTROLLER_PORT, INTERNAL_PORT, REPLICATION_PORT};
use crate::validate::{Node, NodeListener, ValidCluster};
use crate::{Kind, Wanted};

/// Everything of a cluster that no disk hangs on, but how many pods may be evicted.
pub fn shared(cluster: &ValidCluster, layout: &Layout, connections: Connections) -> Vec<Wanted> {
    let mut all = vec![service_account(cluster), headless(cluster, connections), bootstrap(cluster, layout)];
    for node in layout.nodes.values() {
        let outside = node.listeners.iter().filter(|listener| listener.type_ == ListenerType::NodePort);
        all.extend(outside.map(|listener| node_port(cluster, node, listener)));
    }
    all
}

fn node_port(cluster: &ValidCluster, node: &Node, listener: &NodeListener) -> Wanted {
    let body = json!({
        "metadata": {"labels": node_labels(&cluster.name, node.id, &node.pool), "ownerReferences": owner(cluster)},
        "spec": {
            "type": "NodePort",
            "selector": {names::CLUSTER_LABEL: cluster.name, names::NODE_ID_LABEL: node.id.to_string()},
            "ports": [{
                "name": listener.name,
                "port": listener.port,
                "targetPort": listener.port,
                "nodePort": listener.advertised_port,
                "protocol": "TCP",
            }],
        },
    });
    wanted(Kind::Service, &format!("{}-{}", node.name, listener.name), body)
}

fn service_account(cluster: &ValidCluster) -> Wanted {
    let body = json!({
        "metadata": {"labels": labels(&cluster.name), "ownerReferences": owner(cluster)},
        "automountServiceAccountToken": false,
    });
    wanted(Kind::ServiceAccount, &cluster.name, body)
}

fn port(name: &str, number: i32) -> Value {
    json!({"name": name, "port": number, "targetPort": number, "protocol": "TCP"})
}

fn client_ports(cluster: &ValidCluster) -> Vec<Value> {
    let mut ports = vec![port("internal", INTERNAL_PORT)];
    ports.extend(cluster.listeners.iter().map(|listener| port(&listener.name, listener.port)));
    ports
}

/// Gives every pod its name, before it is ready: a quorum forms only among nodes that find each other.
fn headless(cluster: &ValidCluster, connections: Connections) -> Wanted {
    let mut ports = client_ports(cluster);
    ports.push(port("controller", CONTROLLER_PORT));
    if connections.are_tls() {
        ports.push(port("replication", REPLICATION_PORT));
    }
    let body = json!({
        "metadata": {"labels": labels(&cluster.name), "ownerReferences": owner(cluster)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": {names::CLUSTER_LABEL: cluster.name},
            "ports": ports,
        },
    });
    wanted(Kind::Service, &cluster.headless_service(), body)
}

/// Leads clients to brokers. Pods of brokers carry the label that tells them from controllers already, so that a pool of
/// controllers alone changes no broker.
fn bootstrap(cluster: &ValidCluster, layout: &Layout) -> Wanted {
    let mut selector = json!({names::CLUSTER_LABEL: cluster.name});
    if layout.nodes.values().any(|node| !node.is_broker()) {
        selector[names::NAME_LABEL] = json!(names::NAME);
    }
    let body = json!({
        "metadata": {"labels": labels(&cluster.name), "ownerReferences": owner(cluster)},
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": client_ports(cluster),
        },
    });
    wanted(Kind::Service, &cluster.bootstrap_service(), body)
}

/// One for the whole cluster, whether its manifest can be or not: so many nodes must stay. At rest that is all but one, which is none of
/// one node; all, while one is away, behind or about to be restarted: Kubernetes refuses an eviction until it has taken notice of a
/// change here.
pub fn budget(cluster: &KafkaCluster, min_available: usize) -> Wanted {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let owner = owner_of(name, cluster.metadata.uid.as_deref().unwrap_or_default());
    let body = json!({
        "metadata": {"labels": labels(name), "ownerReferences": owner},
        "spec": {
            "minAvailable": min_available,
            "selector": {"matchLabels": {names::CLUSTER_LABEL: name}},
        },
    });
    wanted(Kind::PodDisruptionBudget, name, body)
}
