//! Names that are part of the contract with users and with what is already in their clusters: labels, annotations,
//! finalizers. A change here orphans objects of an older release.

/// Says which KafkaCluster an object belongs to; every object of a cluster carries it and is found by it.
pub const CLUSTER_LABEL: &str = "gregor.dev/cluster";
/// The node id, on every object of one node. Together with [`CLUSTER_LABEL`] it selects that node's pod.
pub const NODE_ID_LABEL: &str = "gregor.dev/node-id";
/// The pool of a node: a plain label that selects nothing, so that pools can be renamed.
pub const POOL_LABEL: &str = "gregor.dev/pool";
/// The storage volume that a claim holds.
pub const VOLUME_LABEL: &str = "gregor.dev/volume";
/// The recommended label that names the application.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// The recommended label that names this installation of the application: the cluster's name.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// The recommended label that names who looks after the object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// What stands in [`NAME_LABEL`] of everything of ours, except of pods that serve no clients.
pub const NAME: &str = "gregor";
/// What stands in [`NAME_LABEL`] of pods that are controllers only, so that no Service sends a client to them.
pub const CONTROLLER_NAME: &str = "gregor-controller";
/// What we write into [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "gregor-operator";

/// On claims: the cluster id that the disk belongs to, repeated from the identity.
pub const CLUSTER_ID: &str = "gregor.dev/cluster-id";
/// On claims: the directory id of the disk, repeated from the identity.
pub const DIRECTORY_ID: &str = "gregor.dev/directory-id";
/// On claims: `"true"` once the disk has been seen formatted; an empty one is lost data from then on.
pub const FORMATTED: &str = "gregor.dev/formatted";
/// On objects of nodes of a larger cluster: what the node does, as `broker,controller`, repeated from the identity.
pub const ROLES: &str = "gregor.dev/roles";
/// On claims and StatefulSets: how the cluster's nodes talk with each other, repeated from the identity; missing where that
/// is plaintext.
pub const NODE_CONNECTIONS: &str = "gregor.dev/node-connections";
/// On claims and StatefulSets: the DNS domain that ends the nodes' names, repeated from the identity.
pub const CLUSTER_DOMAIN: &str = "gregor.dev/cluster-domain";
/// On Secrets with certificates: the nonce of `spec.nodeConnections` that they were last renewed for.
pub const RENEWED_AT: &str = "gregor.dev/renewed-at";
/// On pods: the rack that the operator read from the labels of the pod's Kubernetes node.
pub const RACK: &str = "gregor.dev/rack";
/// On StatefulSets' templates and pods: the hash of all that a restart would change.
pub const REVISION: &str = "gregor.dev/revision";
/// On every applied object: the hash of what was applied, so that an unchanged object is not written again.
pub const APPLIED: &str = "gregor.dev/applied";
/// On pods: the nonce of `spec.restartedAt`.
pub const RESTARTED_AT: &str = "gregor.dev/restarted-at";
/// On a KafkaTopic: the configuration keys that this resource has set, so that removing one from the manifest resets it
/// and nobody else's key is ever touched.
pub const OWNED_CONFIG: &str = "gregor.dev/owned-config";
/// On custom resource definitions: the release that wrote them, so that an older operator never downgrades them.
pub const CRD_VERSION: &str = "gregor.dev/crd-version";

/// Holds a KafkaTopic with `deletionPolicy: Delete` until the topic is gone. Never set under `Retain`.
pub const TOPIC_FINALIZER: &str = "gregor.dev/topic";

/// The longest name of a KafkaCluster: node, Service and pod names are made from it and must stay DNS labels.
pub const CLUSTER_NAME_LENGTH_MAX: usize = 40;
