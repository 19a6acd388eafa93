//! How many pods may be evicted: the PodDisruptionBudget, kept whatever the cluster waits for and whatever its manifest is refused
//! for, because a drain asks for neither. Called by the cluster's plan, with the nodes where the manifest says which there should be,
//! and else by the identity alone.

use serde_json::Value;

use crate::cluster::{ClusterObserved, NodeSeen};
use crate::decision::{Decision, Stage};
use crate::identity::Identity;
use crate::objects::network;
use crate::placement::Layout;
use crate::pods::PodState;
use crate::progress::{Progress, Reason};
use crate::writing::write;
use crate::{Kind, Step, quorum};

/// What the budget should be, and the step that makes it so, if it is otherwise.
#[derive(Debug, Default)]
pub(crate) struct Evictions {
    hold: bool,
    pub(crate) step: Option<Step>,
}

impl Evictions {
    /// Looks at a cluster that has an identity. `placed` is what its manifest asks for, if that can be.
    pub(crate) fn of(
        observed: &ClusterObserved,
        identity: &Identity,
        placed: Option<(&Layout, &[NodeSeen<'_>])>,
    ) -> Self {
        let nodes = placed.map_or(identity.nodes.len(), |(layout, _)| layout.nodes.len());
        let ending = observed.objects.iter().any(|((kind, _), claim)| {
            *kind == Kind::PersistentVolumeClaim && claim["metadata"]["deletionTimestamp"].is_string()
        });
        // The disk of such a claim goes with its pod, also that of the only node.
        let hold = ending || (nodes > 1 && !is_settled(observed, identity, placed));
        let wanted = network::budget(&observed.cluster, if hold { nodes } else { nodes.saturating_sub(1) });
        let goes = |seen: &Value| seen["metadata"]["deletionTimestamp"].is_string();
        if observed.object(wanted.kind, &wanted.name).is_some_and(goes) {
            return Self { hold, step: None };
        }
        let step =
            write(observed, vec![wanted], Stage::Follow, Reason::Creating).err().and_then(|missing| missing.step);
        Self { hold, step }
    }

    /// Stops where a node may be about to be restarted and others could still be evicted meanwhile.
    pub(crate) fn held(&self) -> Result<(), Decision> {
        if self.hold && self.step.is_some() {
            let message = "holding up evictions";
            return Err(Decision::wait(Stage::Follow, Progress::working(Reason::Creating, message)));
        }
        Ok(())
    }
}

/// Whether nobody is away, behind or about to be restarted, as far as anybody knows.
fn is_settled(observed: &ClusterObserved, identity: &Identity, placed: Option<(&Layout, &[NodeSeen<'_>])>) -> bool {
    let ready = identity.nodes.keys().all(|id| observed.pod(*id).is_some_and(|pod| pod.state == PodState::Ready));
    let due = placed
        .is_some_and(|(layout, nodes)| !layout.new.is_empty() || nodes.iter().any(|node| node.candidate().outdated));
    ready
        && !due
        && observed.kafka.as_ref().is_some_and(|kafka| {
            kafka.under_replicated.is_empty()
                && kafka.quorum.leader.is_some()
                && kafka.quorum.lagging().is_empty()
                && placed.is_none_or(|(layout, _)| quorum::next(layout, identity, &kafka.quorum) == quorum::Next::Done)
        })
}
