//! Builders of the objects that a cluster owns. They see a validated cluster and the identity, never the raw manifest, and
//! give whole objects, ready to apply.

pub mod network;
pub mod node;
pub mod storage;

use gregor_operator_api::{DeletionPolicy, names};
use serde_json::{Map, Value, json};

use crate::compare::stamp;
use crate::identity::Identity;
use crate::validate::ValidCluster;
use crate::{Kind, Wanted};

/// The labels of everything that belongs to a cluster.
pub(crate) fn labels(cluster: &str) -> Map<String, Value> {
    let labels = [
        (names::NAME_LABEL, names::NAME),
        (names::INSTANCE_LABEL, cluster),
        (names::MANAGED_BY_LABEL, names::MANAGED_BY),
        (names::CLUSTER_LABEL, cluster),
    ];
    labels.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// The labels of everything that belongs to one node.
pub(crate) fn node_labels(cluster: &str, node_id: i32, pool: &str) -> Map<String, Value> {
    let mut labels = labels(cluster);
    labels.insert(names::NODE_ID_LABEL.to_owned(), json!(node_id.to_string()));
    labels.insert(names::POOL_LABEL.to_owned(), json!(pool));
    labels
}

/// The reference that makes Kubernetes delete an object with its KafkaCluster.
pub(crate) fn owner(cluster: &ValidCluster) -> Value {
    owner_of(&cluster.name, &cluster.uid)
}

/// The same by the name and the uid of the KafkaCluster.
pub(crate) fn owner_of(name: &str, uid: &str) -> Value {
    json!([{
        "apiVersion": "gregor.dev/v1beta1",
        "kind": "KafkaCluster",
        "name": name,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// The same for what holds data: only under `deletionPolicy: Delete`.
pub(crate) fn data_owner(cluster: &ValidCluster) -> Value {
    match cluster.deletion_policy {
        DeletionPolicy::Delete => owner(cluster),
        DeletionPolicy::Retain => json!([]),
    }
}

/// An object with its kind's names, stamped with the hash of its content.
pub(crate) fn wanted(kind: Kind, name: &str, mut body: Value) -> Wanted {
    let api_version = match kind {
        Kind::ConfigMap | Kind::PersistentVolumeClaim | Kind::Service | Kind::ServiceAccount => "v1",
        Kind::PodDisruptionBudget => "policy/v1",
        Kind::StatefulSet => "apps/v1",
    };
    body["apiVersion"] = json!(api_version);
    body["kind"] = json!(kind.as_str());
    body["metadata"]["name"] = json!(name);
    Wanted { kind, name: name.to_owned(), body: stamp(body), seen: None }
}

/// The ConfigMap that holds the identity. It is replaced as a whole, at the version that was read.
pub fn identity(cluster: &ValidCluster, identity: &Identity, seen: Option<&Value>) -> Value {
    let mut metadata = json!({
        "name": cluster.identity(),
        "namespace": cluster.namespace,
        "labels": labels(&cluster.name),
        "ownerReferences": data_owner(cluster),
    });
    if let Some(seen) = seen {
        metadata["resourceVersion"] = seen["metadata"]["resourceVersion"].clone();
        metadata["uid"] = seen["metadata"]["uid"].clone();
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {crate::identity::KEY: identity.text()},
    })
}
