//! Conditions in the form that kstatus, `kubectl wait`, Flux and Argo CD read.
//!
//! `Ready` says whether the object is as its manifest wants it. `Reconciling` is true while the operator works or waits
//! for something that needs no person; `Stalled` is true when only a person can help. Each carries the generation it
//! speaks about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the condition that says: all is as the manifest wants it.
pub const READY: &str = "Ready";
/// The type of the condition that says: the operator is working, or waiting for what will come by itself.
pub const RECONCILING: &str = "Reconciling";
/// The type of the condition that says: nothing moves until a person changes something.
pub const STALLED: &str = "Stalled";

/// Whether a condition holds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can say at the moment.
    Unknown,
}

/// One observation about the object, as Kubernetes' own `Condition`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed: Ready, Reconciling or Stalled.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs: why it is so.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// A sentence for people: why it is so and, where something is to be done, what.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// The metadata.generation that this speaks about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status last changed, RFC 3339.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub last_transition_time: String,
}

/// Finds a condition by its type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}
