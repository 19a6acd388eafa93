//! What the decision about a cluster comes to: a step or none, what to say, and which stage of a cluster's life it belongs to.
//! Made by the cluster's plan and its parts; never seen outside of this crate, except for the stage.

use serde_json::Value;

use crate::progress::{Progress, Reason};
use crate::validate::Invalid;
use crate::{Kind, Step};

/// The stages of a cluster's life, as the plan knows them. [`Stage::BOOTSTRAP`] are those between a new manifest and a cluster
/// that is ready; tests wipe every disk at each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The cluster gets its identity, or gets it back.
    Identity,
    /// Services, claims and permissions are made.
    Objects,
    /// The identity learns which claim holds a disk.
    Claim,
    /// An authority and certificates are made, which nodes cannot start without.
    Certificates,
    /// A node's configuration is written.
    Configuration,
    /// A node's StatefulSet is made.
    Node,
    /// A node starts, or is waited for.
    Start,
    /// The identity learns that a disk is formatted: the permission to do so is gone.
    Formatted,
    /// What repeats the identity follows it: claims, and the permission as pods read it. Other objects are put right too.
    Follow,
    /// The identity gets nodes beyond the first.
    Nodes,
    /// A controller becomes a voter, or is waited for on its way to that.
    Voters,
    /// The identity follows the manifest: pools with another name, another deletion policy.
    Manifest,
    /// Pods are told their racks.
    Racks,
    /// Nodes are restarted one after the other.
    Roll,
    /// A disk is lost, or given up.
    Loss,
    /// What nothing uses any more is deleted.
    Cleanup,
    /// Nothing goes on until a person changes something.
    Refusal,
    /// Everything is as the manifest says.
    Rest,
}

impl Stage {
    /// The stages of a new cluster of several nodes, in the order in which they begin.
    pub const BOOTSTRAP: [Self; 12] = [
        Self::Identity,
        Self::Objects,
        Self::Claim,
        Self::Certificates,
        Self::Configuration,
        Self::Node,
        Self::Start,
        Self::Formatted,
        Self::Follow,
        Self::Nodes,
        Self::Voters,
        Self::Rest,
    ];
}

/// What the decision comes to.
pub(crate) struct Decision {
    pub(crate) step: Option<Step>,
    pub(crate) progress: Progress,
    pub(crate) stage: Stage,
}

impl Decision {
    /// Something to do.
    pub(crate) fn step(stage: Stage, step: Step, reason: Reason, message: impl Into<String>) -> Self {
        Self { step: Some(step), progress: Progress::working(reason, message), stage }
    }

    /// Nothing to do, for now or until a person changes something.
    pub(crate) fn wait(stage: Stage, progress: Progress) -> Self {
        Self { step: None, progress, stage }
    }

    /// Nothing goes on until a person changes something.
    pub(crate) fn refuse(reason: Reason, message: impl Into<String>) -> Self {
        Self::wait(Stage::Refusal, Progress::stalled(reason, message))
    }

    /// An object that nothing uses any more goes.
    pub(crate) fn delete(kind: Kind, name: &str, seen: &Value) -> Self {
        let metadata = |key: &str| seen["metadata"][key].as_str().unwrap_or_default().to_owned();
        let step =
            Step::Delete { kind, name: name.to_owned(), uid: metadata("uid"), version: metadata("resourceVersion") };
        let message = format!("deleting {} {name}, which nothing uses any more", kind.as_str());
        Self::step(Stage::Cleanup, step, Reason::Creating, message)
    }
}

impl From<Invalid> for Decision {
    fn from(invalid: Invalid) -> Self {
        Self::refuse(invalid.reason, invalid.message)
    }
}
