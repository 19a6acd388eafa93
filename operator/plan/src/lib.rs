//! From what was read to what is to be done next: pure functions of a snapshot, called by the manager for every reconcile.
//!
//! [`cluster::plan`] looks at a KafkaCluster and all that belongs to it and names one [`Step`]; [`topic::plan`] does the same
//! for a KafkaTopic. Nothing here talks to anybody, reads a clock or rolls dice: the time and fresh ids come in as arguments.
//! Every decision that could lose data is made here, so that it can be tested by the thousand.

pub mod certificates;
pub mod cluster;
pub mod compare;
mod decision;
mod disks;
mod domain;
mod evictions;
pub mod identity;
pub mod kafka;
pub mod objects;
pub mod owned_keys;
pub mod placement;
pub mod pods;
mod ports;
pub mod progress;
pub mod properties;
pub mod quorum;
mod racks;
mod release;
pub mod roll;
mod status;
pub mod topic;
mod unseen;
pub mod validate;
mod writing;

use certificates::SecretWrites;
use quorum::VoterChange;
use serde_json::Value;

pub use cluster::{ClusterObserved, ClusterPlan};
pub use decision::Stage;
pub use identity::{Connections, Identity};
pub use kafka::KafkaSeen;
pub use progress::{Progress, Reason};
pub use unseen::Unseen;

/// The kinds of objects that a cluster owns, beside its pods and the Secrets with its certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1 ConfigMap`.
    ConfigMap,
    /// `v1 PersistentVolumeClaim`.
    PersistentVolumeClaim,
    /// `policy/v1 PodDisruptionBudget`.
    PodDisruptionBudget,
    /// `v1 Service`.
    Service,
    /// `v1 ServiceAccount`.
    ServiceAccount,
    /// `apps/v1 StatefulSet`.
    StatefulSet,
}

impl Kind {
    /// Every kind, in the order in which a snapshot reads them.
    pub const ALL: [Self; 6] = [
        Self::ConfigMap,
        Self::PersistentVolumeClaim,
        Self::PodDisruptionBudget,
        Self::Service,
        Self::ServiceAccount,
        Self::StatefulSet,
    ];

    /// The kind's name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

/// What the operator knows that no manifest says.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The nodes' image without its tag, for example `gregor` or `registry.example.com/gregor`.
    pub image_repository: String,
    /// The tag for clusters that name no version: this operator's own release.
    pub image_tag: String,
    /// `imagePullPolicy` of the nodes.
    pub image_pull_policy: String,
    /// Names of Secrets with which the nodes' image is pulled.
    pub image_pull_secrets: Vec<String>,
    /// The DNS domain of this Kubernetes, mostly `cluster.local`: new clusters are made in it, and those that are there keep theirs.
    pub cluster_domain: String,
}

/// An object as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its kind.
    pub kind: Kind,
    /// Its name; its namespace is the cluster's.
    pub name: String,
    /// The whole object as it is applied.
    pub body: Value,
    /// What was read of it, of objects that data hangs on: another version is not overwritten.
    pub seen: Option<Seen>,
}

/// An object as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: String,
}

impl Seen {
    /// What was read.
    pub fn of(object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        Self { uid: text("uid"), version: text("resourceVersion") }
    }
}

/// An object that holds data and stays, with the owners that it is left with, if it still is what was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version in which it was read.
    pub version: String,
    /// The owners that stay.
    pub owners: Vec<Value>,
}

/// One thing to do. The next reconcile looks again before it does another.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Create the identity; if it is there by now, look again.
    CreateIdentity(Value),
    /// Replace the identity at exactly the version that was read; if it has changed by now, look again.
    ReplaceIdentity(Value),
    /// Create objects that were not there. One that is there by now belongs to somebody else: it is never overwritten.
    Create(Vec<Wanted>),
    /// Apply objects that differ, in this order; if one that data hangs on has changed by now, look again.
    Apply(Vec<Wanted>),
    /// Write Secrets with certificates, each at the version that was read; if one has changed by now, look again.
    WriteSecrets(SecretWrites),
    /// Change who votes in the metadata quorum: one voter at a time.
    ChangeVoters(VoterChange),
    /// Tell a pod which rack its Kubernetes node is in, if it still is the one with this uid.
    TellRack {
        /// The pod's name.
        pod: String,
        /// The pod's uid.
        uid: String,
        /// The rack.
        rack: String,
    },
    /// Leave objects with fewer owners: they do not go with their KafkaCluster.
    Release(Vec<Release>),
    /// Delete a pod, if it still is what was read: its StatefulSet starts the next one.
    DeletePod {
        /// The pod's name.
        name: String,
        /// The pod's uid.
        uid: String,
        /// The version in which it was read.
        version: String,
    },
    /// Delete an object that nothing uses any more, if it still is what was read.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// The version in which it was read.
        version: String,
    },
}
