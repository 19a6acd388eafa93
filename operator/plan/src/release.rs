//! What holds data and stays: under `deletionPolicy: Retain` neither the identity nor a claim has the KafkaCluster for its owner, with
//! which Kubernetes would delete it. Called by the cluster's plan; it looks at the manifest's one word and at the objects alone, so
//! that whatever else the cluster waits for, or is refused for, holds this up never. Who is an owner again under `Delete` is not said
//! here: that waits until all else is in order.

use gregor_operator_api::DeletionPolicy;
use serde_json::Value;

use crate::cluster::ClusterObserved;
use crate::{Kind, Release, Step};

/// Every object that holds data and would go with the KafkaCluster, although it is to stay.
pub(crate) fn release(observed: &ClusterObserved) -> Vec<Release> {
    let metadata = &observed.cluster.metadata;
    let Some(uid) = metadata.uid.as_deref().filter(|_| metadata.deletion_timestamp.is_none()) else {
        return Vec::new();
    };
    if observed.cluster.spec.deletion_policy == DeletionPolicy::Delete {
        return Vec::new();
    }
    let identity = observed.identity.iter().map(|seen| (Kind::ConfigMap, seen));
    let claims = observed.objects.iter().filter(|((kind, _), _)| *kind == Kind::PersistentVolumeClaim);
    let all = identity.chain(claims.map(|((kind, _), seen)| (*kind, seen)));
    all.filter_map(|(kind, seen)| without(kind, seen, uid)).collect()
}

/// Takes the KafkaCluster with this uid out of the owners, if it is among them.
fn without(kind: Kind, seen: &Value, cluster: &str) -> Option<Release> {
    let metadata = &seen["metadata"];
    let owners = metadata["ownerReferences"].as_array().filter(|_| metadata["deletionTimestamp"].is_null())?;
    let others: Vec<Value> = owners.iter().filter(|owner| owner["uid"] != *cluster).cloned().collect();
    let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    (others.len() < owners.len()).then(|| Release {
        kind,
        name: text("name"),
        uid: text("uid"),
        version: text("resourceVersion"),
        owners: others,
    })
}

/// Whether a step writes one of the objects that are released before it: it is planned again with what they are by then.
pub(crate) fn is_before(released: &[Release], step: &Step) -> bool {
    released.iter().any(|release| match step {
        Step::Apply(all) => all.iter().any(|wanted| wanted.kind == release.kind && wanted.name == release.name),
        Step::ReplaceIdentity(_) => release.kind == Kind::ConfigMap,
        _ => false,
    })
}
