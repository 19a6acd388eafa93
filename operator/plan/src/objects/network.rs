//! How a cluster is reached and protected: Services, the ServiceAccount, the PodDisruptionBudget.

use gregor_operator_api::cluster::ListenerType;
use gregor_operator_api::names;
use serde_json::{Value, json};

use super::{labels, node_labels, owner, wanted};
use crate::properties::{CONTROLLER_PORT, INTERNAL_PORT};
use crate::validate::{Node, ValidCluster};
use crate::{Kind, Wanted};

/// Everything of a cluster that no node has for itself.
pub fn shared(cluster: &ValidCluster, node: &Node) -> Vec<Wanted> {
    let mut all = vec![service_account(cluster), headless(cluster), bootstrap(cluster), budget(cluster)];
    all.extend(node.listeners.iter().filter(|listener| listener.type_ == ListenerType::NodePort).map(|listener| {
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
    }));
    all
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
fn headless(cluster: &ValidCluster) -> Wanted {
    let mut ports = client_ports(cluster);
    ports.push(port("controller", CONTROLLER_PORT));
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

fn bootstrap(cluster: &ValidCluster) -> Wanted {
    let body = json!({
        "metadata": {"labels": labels(&cluster.name), "ownerReferences": owner(cluster)},
        "spec": {
            "type": "ClusterIP",
            "selector": {names::CLUSTER_LABEL: cluster.name},
            "ports": client_ports(cluster),
        },
    });
    wanted(Kind::Service, &cluster.bootstrap_service(), body)
}

/// One for the whole cluster: nodes - 1 must stay, which is none of one node.
fn budget(cluster: &ValidCluster) -> Wanted {
    let body = json!({
        "metadata": {"labels": labels(&cluster.name), "ownerReferences": owner(cluster)},
        "spec": {
            "minAvailable": 0,
            "selector": {"matchLabels": {names::CLUSTER_LABEL: cluster.name}},
        },
    });
    wanted(Kind::PodDisruptionBudget, &cluster.name, body)
}
