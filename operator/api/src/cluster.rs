//! KafkaCluster: the nodes, disks, listeners and configuration of one Kafka cluster.
//!
//! The schema has the shape of the whole; what this release does not serve yet is refused by rules that say what to write
//! instead, so that a manifest accepted today means the same tomorrow.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::value::{Config, DeletionPolicy, Resources};

/// What a cluster should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "gregor.dev",
    version = "v1beta1",
    kind = "KafkaCluster",
    namespaced,
    status = "KafkaClusterStatus",
    shortname = "gk",
    category = "gregor",
    derive = "PartialEq",
    doc = "A Kafka cluster: its nodes, disks, listeners and configuration. Its disks and its identity are kept when this object is deleted, unless deletionPolicy is Delete, and are found again when it is created again.",
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodeCount", description = "Nodes that the manifest asks for"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "Whether the cluster is as the manifest wants it"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase", description = "What is going on, in words"),
    printcolumn(name = "Bootstrap", type_ = "string", json_path = ".status.bootstrapServers", description = "bootstrap.servers for clients in this Kubernetes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", description = "The image that the nodes run", priority = "1"),
    printcolumn(name = "Cluster id", type_ = "string", json_path = ".status.clusterId", description = "The cluster's id in Kafka", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a KafkaCluster is at most 40 characters, begins with a letter and has only a-z, 0-9 and -: node, Service and pod names are made from it"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storage) || self.nodePools.all(p, has(p.storage))")
    .message("say how much disk the nodes get: write storage: {volumes: [{name: data, size: 10Gi}]} in spec or in every node pool"))]
pub struct KafkaClusterSpec {
    /// The nodes, in groups that are alike. A node that is there stays: this release takes none away and changes no roles.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.exists(p, 'controller' in p.roles)").message("nobody would hold the metadata: write roles: [broker, controller] or roles: [controller] in one of the pools"))]
    #[x_kube(validation = Rule::new("self.exists(p, 'broker' in p.roles)").message("nobody would serve clients: write roles: [broker, controller] or roles: [broker] in one of the pools"))]
    pub node_pools: Vec<NodePool>,
    /// The disks of every node whose pool does not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Listeners for clients beside the one that is always there: `internal`, port 9092, plaintext, for clients in this
    /// Kubernetes, at `<cluster>-bootstrap`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(l, self.exists_one(m, m.port == l.port))").message("two listeners have the same port: give each its own"))]
    pub listeners: Vec<Listener>,
    /// Brokers' configuration in Kafka's own keys. Numbers and booleans need no quotes. Keys that this resource has fields
    /// for (node.id, listeners, log.dirs and the like) belong to the operator.
    #[serde(default, skip_serializing_if = "Config::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub config: Config,
    /// CPU and memory of every node whose pool does not say otherwise. Left out: requests of 100m and 128Mi, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// A pod template that is merged over the operator's as `kubectl patch` would (lists of named things by name): labels,
    /// affinity, tolerations, more volumes. The container is named gregor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::value::pod_template")]
    pub pod_template: Option<serde_json::Value>,
    /// The Gregor release that the nodes run, as the tag of the image. Left out: what runs now, or the operator's own release
    /// for a new cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+([-.][0-9A-Za-z.-]+)?$"))]
    pub version: Option<String>,
    /// The metadata.version that the cluster is formatted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+\.[0-9]+(-IV[0-9]+)?$"))]
    #[x_kube(validation = Rule::new("self in ['4.3', '4.3-IV0']").message("this release formats clusters at metadata version 4.3: write metadataVersion: \"4.3\" or leave it out"))]
    pub metadata_version: Option<String>,
    /// The image of the nodes, in full. It wins over version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^\s]+$"))]
    pub image: Option<String>,
    /// Any text; changing it restarts the nodes one after the other. A time is a good choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restarted_at: Option<String>,
    /// The certificates with which the nodes know each other. Controllers and brokers reach each other by mutual TLS, always;
    /// these are the few things about it that may be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_connections: Option<NodeConnections>,
    /// Node ids whose disk is reported as DiskLost and whose data you give up: the node starts again with an empty disk. It
    /// counts once, for a loss that is reported at the moment; take the id out again afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(range(min = 0, max = 99_999)), extend("x-kubernetes-list-type" = "set"))]
    pub accept_data_loss: Vec<i32>,
    /// Retain: deleting this object leaves the disks and the cluster's identity, and creating it again finds them. Delete: the
    /// data goes with the object.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Other namespaces whose KafkaTopics may name this cluster; `*` stands for all. Its own namespace always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 63), regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_namespaces: Vec<String>,
}

/// The certificates with which the nodes know each other. The operator makes them, in Secrets of the cluster, and renews them
/// when two thirds of their time are over, without a restart.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeConnections {
    /// For how many days a node's certificate is made. Left out: 90.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 825))]
    pub certificate_days: Option<i32>,
    /// For how many days the authority that signs them is made. Left out: 1825.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7300))]
    pub authority_days: Option<i32>,
    /// Any text; changing it renews the certificates of all nodes, one node after the other. A time is a good choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub certificates_renewed_at: Option<String>,
    /// Any text; changing it makes a new authority, which every node trusts before any node's certificate is signed by it. A
    /// time is a good choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub authority_renewed_at: Option<String>,
}

/// A group of nodes that are alike.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.replicas) != has(self.nodeIds)").message("write either replicas or nodeIds, not both: replicas: 1, or nodeIds: [\"0\"]"))]
pub struct NodePool {
    /// The pool's name.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How many nodes; the operator chooses their ids, the lowest that are free, and a node keeps its own for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// The ids of the nodes, single ones and ranges, for example `["0-2", "7"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 11), regex(pattern = r"^[0-9]{1,5}(-[0-9]{1,5})?$")), extend("x-kubernetes-list-type" = "set"))]
    pub node_ids: Option<Vec<String>>,
    /// What the nodes do. Left out: both.
    #[serde(default = "combined")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<Role>,
    /// The disks of these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The rack (zone, room) that these nodes are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<Rack>,
    /// CPU and memory of these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// A pod template that is merged over the cluster's for these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::value::pod_template")]
    pub pod_template: Option<serde_json::Value>,
}

/// What a node does.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds partitions and serves clients.
    Broker,
    /// Votes in the KRaft quorum and holds the metadata log.
    Controller,
}

impl Role {
    /// The word, as manifests and `process.roles` have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Controller => "controller",
        }
    }
}

fn combined() -> Vec<Role> {
    vec![Role::Broker, Role::Controller]
}

/// The disks of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// One entry for each disk; each becomes a PersistentVolumeClaim of its own for each node.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.size() == 1").message("this release gives each node one disk: write one entry in volumes"))]
    pub volumes: Vec<Volume>,
}

/// One disk of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("storageClassName cannot be changed for a disk that may hold data: Kubernetes has no way to move it"))]
pub struct Volume {
    /// The disk's name, for example data.
    #[schemars(length(min = 1, max = 12), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How large it is, for example 100Gi. It can grow where the storage class allows it, never shrink.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?|k)?$"))]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("a disk cannot shrink: write at least the size that it has"))]
    pub size: String,
    /// The storage class. Left out: the default class of the Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Where a node is, as broker.rack.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.name) || !has(self.topologyKey)").message("a rack has one source: write either name or topologyKey"))]
pub struct Rack {
    /// The rack's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// The label of Kubernetes' nodes that names the rack, for example topology.kubernetes.io/zone. The operator needs the
    /// right to read nodes: the chart's rbac.nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: Option<String>,
}

/// A way for clients to reach the brokers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.name in ['internal', 'controller', 'replication', 'bootstrap', 'health', 'nodes'])")
    .message("this name belongs to the operator: give the listener another one"))]
#[x_kube(validation = Rule::new("!self.name.contains('--')").message("the ports of containers take this name, and Kubernetes lets it have no two hyphens in a row: write one"))]
#[x_kube(validation = Rule::new("!(self.port in [9090, 9091, 9092, 9404])").message("ports 9090, 9091, 9092 and 9404 belong to the operator: give the listener another one, for example 9094"))]
#[x_kube(validation = Rule::new("!has(self.tls)").message("this release serves plaintext listeners only: leave out tls, and keep the listener inside a network that you trust"))]
#[x_kube(validation = Rule::new("self.type != 'NodePort' || (has(self.advertised) && has(self.advertised.hostTemplate) && has(self.advertised.portTemplate))")
    .message("clients outside need an address that they can reach: write advertised: {hostTemplate: ..., portTemplate: ...}, the name of a Kubernetes node and the node port, for example 3009{nodeId}"))]
pub struct Listener {
    /// The listener's name; in the brokers' configuration it stands in capitals.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The port that the brokers listen on.
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// How it is reached.
    #[serde(default, rename = "type")]
    pub type_: ListenerType,
    /// Encryption of the listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// What brokers tell clients to connect to. Left out: the pods' own names, which only this Kubernetes knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<Advertised>,
    /// Exceptions for single nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["nodeId"]))]
    pub nodes: Vec<ListenerNode>,
}

/// How a listener is reached.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ListenerType {
    /// By Services inside this Kubernetes, or through a port-forward or a proxy of your own.
    #[default]
    Internal,
    /// By a port on every Kubernetes node, one for each broker: the advertised port.
    NodePort,
}

/// Encryption of a listener.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// The Secret with tls.crt and tls.key.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// What brokers tell clients to connect to. {nodeId}, {cluster}, {namespace} and {pool} stand for the node's own.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Advertised {
    /// The host, for example broker-{nodeId}.kafka.example.com.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^([A-Za-z0-9._:-]|\{(nodeId|cluster|namespace|pool)\})+$")
    )]
    pub host_template: Option<String>,
    /// The port, for example 3009{nodeId} or 9094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[0-9]*(\{nodeId\})?[0-9]*$"))]
    pub port_template: Option<String>,
}

/// An exception for one node's address.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerNode {
    /// The node.
    #[schemars(range(min = 0, max = 99_999))]
    pub node_id: i32,
    /// The advertised host of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// The advertised port of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// What was last seen of the cluster. Derived: deleting it loses nothing.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaClusterStatus {
    /// The metadata.generation that the operator has seen.
    #[serde(default)]
    pub observed_generation: i64,
    /// What is going on, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub phase: Option<String>,
    /// Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The cluster's id in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 22))]
    pub cluster_id: Option<String>,
    /// bootstrap.servers for clients in this Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub bootstrap_servers: Option<String>,
    /// The image that the nodes run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// Nodes that the manifest asks for.
    #[serde(default)]
    pub node_count: i32,
    /// The controller that leads the quorum; of clusters of several nodes, while the brokers can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum_leader: Option<i32>,
    /// Voters that are behind the leader of the quorum.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "set"))]
    pub lagging_voters: Vec<i32>,
    /// Partitions with a replica that is not in sync; of clusters of several nodes, while the brokers can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_replicated_partitions: Option<i32>,
    /// How the nodes talk with each other, and how long their certificates are good for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_connections: Option<NodeConnectionsStatus>,
    /// Each listener's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 17), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub listeners: Vec<ListenerStatus>,
    /// Each node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["nodeId"]))]
    pub nodes: Vec<NodeStatus>,
}

/// How the nodes of a cluster talk with each other.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Encryption {
    /// Not at all: the cluster was made by a release that did not do better, and stays as it is.
    Plaintext,
    /// By mutual TLS, with certificates of the cluster's own authority.
    Tls,
}

/// The certificates with which the nodes know each other, as they were last seen.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeConnectionsStatus {
    /// Tls, or Plaintext in a cluster of an older release.
    pub encryption: Encryption,
    /// When the authority that signs ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub authority_not_after: Option<String>,
    /// When the first of the nodes' certificates ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub certificates_not_after: Option<String>,
    /// What a renewal that is going on waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub waiting_for: Option<String>,
}

/// A listener's address.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// The listener's name.
    #[schemars(length(max = 15))]
    pub name: String,
    /// bootstrap.servers for its clients.
    #[schemars(length(max = 512))]
    pub bootstrap_servers: String,
}

/// One node as it was last seen.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's id.
    pub node_id: i32,
    /// The pool that it belongs to.
    #[schemars(length(max = 40))]
    pub pool: String,
    /// Whether it serves.
    pub ready: bool,
    /// The id of its disk's log directory.
    #[schemars(length(max = 22))]
    pub directory_id: String,
    /// The rack that it was told, where that comes from its Kubernetes node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub rack: Option<String>,
    /// When its certificate for other nodes ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub certificate_not_after: Option<String>,
}
