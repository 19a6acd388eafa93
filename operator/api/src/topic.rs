//! KafkaTopic: one topic of one cluster. What the manifest does not name is left to the broker and to other people.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::value::{Config, DeletionPolicy};

/// What a topic should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "gregor.dev",
    version = "v1beta1",
    kind = "KafkaTopic",
    namespaced,
    status = "KafkaTopicStatus",
    shortname = "gkt",
    category = "gregor",
    derive = "PartialEq",
    doc = "A Kafka topic: created if it is missing, adopted if it is there, grown and configured as the manifest says. Its data is kept when this object is deleted, unless deletionPolicy is Delete.",
    selectable = ".spec.clusterRef.name",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The KafkaCluster that holds the topic"),
    printcolumn(name = "Topic", type_ = "string", json_path = ".status.topicName", description = "The topic's name in Kafka"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions", description = "Partitions that the topic has"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "Whether the topic is as the manifest wants it"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", description = "Why it is so"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", description = "The same in a sentence", priority = "1"),
    validation = Rule::new("has(self.spec.topicName) || self.metadata.name.size() <= 249").message("the name is too long for a topic: Kafka allows 249 characters; write a shorter spec.topicName"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.topicName) == has(oldSelf.topicName) && (!has(self.topicName) || self.topicName == oldSelf.topicName)")
    .message("topicName cannot be changed: Kafka has no way to rename a topic; create another KafkaTopic"))]
pub struct KafkaTopicSpec {
    /// The cluster that holds the topic. It cannot be changed: create another KafkaTopic for another cluster.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clusterRef cannot be changed: create another KafkaTopic for the other cluster"))]
    pub cluster_ref: ClusterRef,
    /// The topic's name in Kafka where it differs from metadata.name, for example with capitals or underscores. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("self != '.' && self != '..'").message("a topic cannot be named . or ..: write another topicName"))]
    #[x_kube(validation = Rule::new("!(self in ['__cluster_metadata', '__consumer_offsets', '__transaction_state', '__share_group_state'])")
        .message("this topic belongs to the brokers, which create and configure it: write a topicName of your own"))]
    pub topic_name: Option<String>,
    /// How many partitions the topic has at least. It can grow, never shrink. Left out: the broker's num.partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub partitions: Option<i32>,
    /// How many replicas each partition has. Left out: the broker's default.replication.factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub replicas: Option<i32>,
    /// The topic's configuration in Kafka's own keys. Numbers and booleans need no quotes. A key that is taken out again goes
    /// back to the broker's default; keys that were never here are left to whoever set them.
    #[serde(default, skip_serializing_if = "Config::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    pub config: Config,
    /// Retain: deleting this object leaves the topic and its data in Kafka. Delete: it deletes both.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Names a KafkaCluster.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// The name of the KafkaCluster.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The namespace of the KafkaCluster where it is another one; the cluster must list this one in its allowedNamespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// What was last seen of the topic. Derived: deleting it loses nothing.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTopicStatus {
    /// The metadata.generation that the operator has seen.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The topic's name in Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 249))]
    pub topic_name: Option<String>,
    /// The topic's id in Kafka: a topic that was deleted and created again has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 22))]
    pub topic_id: Option<String>,
    /// Partitions that the topic has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas that each partition has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

impl KafkaTopic {
    /// The topic's name in Kafka: `spec.topicName`, else the object's own.
    pub fn topic_name(&self) -> &str {
        self.spec.topic_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// The namespace and name of the cluster that holds the topic.
    pub fn cluster(&self) -> (&str, &str) {
        let own = self.metadata.namespace.as_deref().unwrap_or_default();
        (self.spec.cluster_ref.namespace.as_deref().unwrap_or(own), &self.spec.cluster_ref.name)
    }
}
