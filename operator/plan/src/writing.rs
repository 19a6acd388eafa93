//! What of a cluster's objects is to be written: those that are missing, those that differ, and those that nothing uses any more.
//! Called by the cluster's plan in the order of safety; nothing here decides whether the time for it has come.

use std::collections::BTreeSet;

use gregor_operator_api::names;
use serde_json::Value;

use crate::cluster::{ClusterObserved, NodeSeen};
use crate::compare::{applied, differs};
use crate::decision::{Decision, Stage};
use crate::identity::Identity;
use crate::objects::{network, node, storage};
use crate::placement::Layout;
use crate::pods::PodState;
use crate::progress::{Progress, Reason};
use crate::validate::{Node, ValidCluster};
use crate::{Kind, Seen, Step, Wanted, ports};

/// What may be formatted follows the identity before anything else is written, and whatever else cannot be.
pub(crate) fn withdraw(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
) -> Result<(), Decision> {
    let grants = nodes.iter().map(|node| storage::grant(cluster, node.node, identity));
    let there = grants.filter(|grant| observed.object(grant.kind, &grant.name).is_some());
    write(observed, there.collect(), Stage::Follow, Reason::Creating)
}

/// What can be written at any time without a restart. The claims of `troubled` nodes are left to who brings their disks back.
pub(crate) fn write_shared(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    layout: &Layout,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
    troubled: &BTreeSet<i32>,
) -> Result<(), Decision> {
    let mut wanted = network::shared(cluster, layout, identity.connections);
    for node in nodes {
        if !troubled.contains(&node.node.id) {
            wanted.push(storage::claim(cluster, node.node, identity, node.claim));
        }
        wanted.push(storage::grant(cluster, node.node, identity));
    }
    if let Some(ending) = wanted.iter().find_map(|wanted| {
        let seen = observed.object(wanted.kind, &wanted.name)?;
        seen["metadata"]["deletionTimestamp"].is_string().then_some(wanted)
    }) {
        if ending.kind == Kind::PersistentVolumeClaim {
            let message = format!(
                "the claim {} is marked as deleted, which cannot be taken back: its disk goes as soon as its pod ends, and until then no pod is restarted or may be evicted. Save what only this disk has; then delete the pod, and name the node in spec.acceptDataLoss",
                ending.name
            );
            return Err(Decision::wait(Stage::Objects, Progress::stalled(Reason::Terminating, message)));
        }
        let message =
            format!("{} {} is being deleted: it is made again when it is gone", ending.kind.as_str(), ending.name);
        return Err(Decision::wait(Stage::Objects, Progress::working(Reason::Terminating, message)));
    }
    // Listeners that were taken out of the manifest.
    let obsolete = observed.objects.iter().find(|((kind, name), service)| {
        *kind == Kind::Service
            && service["metadata"]["labels"][names::NODE_ID_LABEL].is_string()
            && service["metadata"]["deletionTimestamp"].is_null()
            && !wanted.iter().any(|wanted| wanted.kind == Kind::Service && wanted.name == *name)
    });
    if let Some(((kind, name), seen)) = obsolete {
        return Err(Decision::delete(*kind, name, seen));
    }
    write(observed, wanted, Stage::Objects, Reason::Creating)
}

/// Creates what is missing, then applies what differs.
pub(crate) fn write(
    observed: &ClusterObserved,
    wanted: Vec<Wanted>,
    stage: Stage,
    reason: Reason,
) -> Result<(), Decision> {
    let (there, missing): (Vec<Wanted>, Vec<Wanted>) =
        wanted.into_iter().partition(|wanted| observed.object(wanted.kind, &wanted.name).is_some());
    let names = |objects: &[Wanted]| {
        objects.iter().map(|wanted| format!("{} {}", wanted.kind.as_str(), wanted.name)).collect::<Vec<_>>().join(", ")
    };
    if !missing.is_empty() {
        let message = format!("creating {}", names(&missing));
        return Err(Decision::step(stage, Step::Create(missing), reason, message));
    }
    let differing: Vec<Wanted> = there
        .into_iter()
        .filter_map(|wanted| {
            let seen = observed.object(wanted.kind, &wanted.name)?;
            let settled = seen["metadata"]["uid"].as_str().and_then(|uid| observed.settled.get(uid));
            let due = differs(&wanted.body, seen)
                && (settled.is_none() || settled.map(String::as_str) != applied(&wanted.body));
            // A permission to format, what repeats the identity, and what starts a process on a disk: an operator that was held up
            // must not put back what another has written since.
            let data = matches!(wanted.kind, Kind::ConfigMap | Kind::PersistentVolumeClaim | Kind::StatefulSet);
            due.then(|| Wanted { seen: data.then(|| Seen::of(seen)), ..wanted })
        })
        .collect();
    let differing = ports::in_turn(observed, differing);
    if !differing.is_empty() {
        let message = format!("updating {}", names(&differing));
        return Err(Decision::step(Stage::Follow, Step::Apply(differing), reason, message));
    }
    Ok(())
}

/// Makes the nodes that are not there, and puts right what somebody changed of those that are, without a restart.
pub(crate) fn start(observed: &ClusterObserved, nodes: &[NodeSeen<'_>]) -> Result<(), Decision> {
    for node in nodes {
        if node.stateful_set.is_some_and(|seen| seen["metadata"]["deletionTimestamp"].is_string()) {
            let message = format!("StatefulSet {} is being deleted: it is made again when it is gone", node.node.name);
            return Err(Decision::wait(Stage::Node, Progress::working(Reason::Terminating, message)));
        }
        let turn_is_over = node.stateful_set.is_none_or(|seen| node::revision(seen) == node.revision);
        if turn_is_over {
            write(observed, vec![node.wanted_config.clone()], Stage::Configuration, Reason::Creating)?;
            write(observed, vec![node.wanted_set.clone()], Stage::Node, Reason::Creating)?;
        }
    }
    Ok(())
}

/// The node's turn: only now are its ConfigMap and its template written, and only then is its pod replaced.
pub(crate) fn restart(observed: &ClusterObserved, node: &NodeSeen<'_>) -> Result<(), Decision> {
    write(observed, vec![node.wanted_config.clone()], Stage::Configuration, Reason::Restarting)?;
    write(observed, vec![node.wanted_set.clone()], Stage::Roll, Reason::Restarting)?;
    let Some(pod) = node.pod.as_ref().filter(|pod| pod.state != PodState::Terminating) else { return Ok(()) };
    if pod.revision == node.revision {
        return Ok(());
    }
    let step = Step::DeletePod { name: pod.name.clone(), uid: pod.uid.clone(), version: pod.version.clone() };
    let message = format!("restarting node {} with its new configuration", node.node.id);
    Err(Decision::step(Stage::Roll, step, Reason::Restarting, message))
}

/// A ConfigMap of an earlier configuration of the node, once the node runs with the newest.
pub(crate) fn obsolete_config_map<'a>(
    observed: &'a ClusterObserved,
    node: &Node,
    keep: &str,
) -> Option<(&'a (Kind, String), &'a Value)> {
    let id = node.id.to_string();
    observed.objects.iter().find(|((kind, name), object)| {
        *kind == Kind::ConfigMap
            && object["immutable"] == true
            && object["metadata"]["labels"][names::NODE_ID_LABEL] == *id
            && object["metadata"]["deletionTimestamp"].is_null()
            && name != keep
    })
}
