//! What makes a disk a node's own: its claim, and the word whether it may be formatted.

use gregor_operator_api::names;
use serde_json::{Value, json};

use super::{data_owner, node_labels, owner, wanted};
use crate::compare::quantity;
use crate::identity::Identity;
use crate::validate::{Node, ValidCluster, roles_text};
use crate::{Kind, Wanted};

/// The name of a node's claim.
pub fn claim_name(node: &Node) -> String {
    format!("{}-{}", node.name, node.volume.name)
}

/// The claim. What cannot be changed is taken from the one that is there; a disk that is larger than asked for is fine.
pub fn claim(cluster: &ValidCluster, node: &Node, identity: &Identity, seen: Option<&Value>) -> Wanted {
    let mut labels = node_labels(&cluster.name, node.id, &node.pool);
    labels.insert(names::VOLUME_LABEL.to_owned(), json!(node.volume.name));
    let recorded = identity.nodes.get(&node.id);
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": node.volume.size}},
    });
    if let Some(class) = &node.volume.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    if let Some(seen) = seen.map(|seen| &seen["spec"]) {
        spec["accessModes"] = seen["accessModes"].clone();
        if !spec["storageClassName"].is_null() {
            spec["storageClassName"] = seen["storageClassName"].clone();
        }
        let there = &seen["resources"]["requests"]["storage"];
        let larger = match (there.as_str().and_then(quantity), quantity(&node.volume.size)) {
            (Some(there), Some(asked)) => there >= asked,
            _ => true,
        };
        if larger {
            spec["resources"]["requests"]["storage"] = there.clone();
        }
    }
    let mut annotations = json!({
        names::CLUSTER_ID: identity.cluster_id,
        names::DIRECTORY_ID: recorded.map(|node| node.directory_id.as_str()),
        names::FORMATTED: recorded.is_some_and(|node| node.formatted).to_string(),
    });
    repeat_identity(&mut annotations, identity, node);
    let body = json!({
        "metadata": {
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": data_owner(cluster),
        },
        "spec": spec,
    });
    wanted(Kind::PersistentVolumeClaim, &claim_name(node), body)
}

/// Repeats where a node belongs, how it talks with others and by which names, for the day on which the identity has to be put together again.
pub(super) fn repeat_identity(annotations: &mut Value, identity: &Identity, node: &Node) {
    if let Some(placement) = identity.nodes.get(&node.id).and_then(|recorded| recorded.placement.as_ref()) {
        annotations[names::ROLES] = json!(roles_text(&placement.roles));
    }
    if identity.connections.are_tls() {
        annotations[names::NODE_CONNECTIONS] = json!(identity.connections.as_str());
    }
    if let Some(domain) = &identity.cluster_domain {
        annotations[names::CLUSTER_DOMAIN] = json!(domain);
    }
}

/// The name of the ConfigMap with the permission to format.
pub fn grant_name(node: &Node) -> String {
    format!("{}-grant", node.name)
}

/// Whether the disk with this directory id may be formatted while it is empty. It is an object of its own, which the init
/// container reads at every start, so that the permission can be withdrawn without a restart and before the next one.
pub fn grant(cluster: &ValidCluster, node: &Node, identity: &Identity) -> Wanted {
    let directory_id = identity.nodes.get(&node.id).map(|node| node.directory_id.clone()).unwrap_or_default();
    let body = json!({
        "metadata": {"labels": node_labels(&cluster.name, node.id, &node.pool), "ownerReferences": owner(cluster)},
        "data": {directory_id: identity.grant(node.id).as_str()},
    });
    wanted(Kind::ConfigMap, &grant_name(node), body)
}
