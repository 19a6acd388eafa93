//! The custom resources of group `gregor.dev/v1beta1`: [`KafkaCluster`] and [`KafkaTopic`], their validation rules,
//! printer columns and conditions.
//!
//! Called by `plan` (which decides), by the manager (which reads and writes them) and by everybody who wants to talk to
//! the operator from Rust. It does no I/O and takes no decision: what a field means is written at the field, because that
//! text is what `kubectl explain` shows.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cluster;
pub mod condition;
pub mod names;
pub mod topic;
pub mod value;
pub mod yaml;

pub use cluster::{KafkaCluster, KafkaClusterSpec, KafkaClusterStatus};
pub use condition::{Condition, ConditionStatus};
pub use topic::{KafkaTopic, KafkaTopicSpec, KafkaTopicStatus};
pub use value::{ConfigValue, DeletionPolicy};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The API group of every kind of ours.
pub const GROUP: &str = "gregor.dev";

/// Every custom resource definition of this release, in the order in which they are installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![KafkaCluster::crd(), KafkaTopic::crd()];
    for crd in &mut crds {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        // Deleting a definition deletes every object of its kind: `helm uninstall` must leave it alone.
        annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        annotations.insert(names::CRD_VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        crd.metadata.labels.get_or_insert_default().insert(names::NAME_LABEL.to_owned(), "gregor".to_owned());
    }
    crds
}
