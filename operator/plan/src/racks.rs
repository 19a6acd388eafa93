//! The racks of pods, where those come from the Kubernetes nodes. Called by the cluster's plan; it tells a pod its rack whatever
//! else the cluster waits for, because a node that waits for its rack may be what the others wait for.

use std::collections::BTreeMap;

use gregor_operator_api::cluster::Role;
use gregor_operator_api::names;
use k8s_openapi::api::core::v1::Pod;

use crate::Step;
use crate::cluster::{ClusterObserved, NodeSeen};
use crate::decision::{Decision, Stage};
use crate::placement::Layout;
use crate::pods::{PodSeen, PodState};
use crate::progress::{Progress, Reason};
use crate::validate::RackSource;

/// Every pod that can be told its rack now. Without a layout, of a manifest that is refused, each pod is in the pool of its label.
pub(crate) fn tell(observed: &ClusterObserved, layout: Option<&Layout>) -> Vec<Step> {
    let steps = observed.pods.iter().filter_map(|pod| {
        let seen = PodSeen::of(pod);
        let key = match layout {
            Some(layout) => key_in_layout(layout, pod)?,
            None => key_in_manifest(observed, pod)?,
        };
        let rack = rack(labels(observed, waiting(&seen)?), key)?.to_owned();
        Some(Step::TellRack { pod: seen.name, uid: seen.uid, rack })
    });
    steps.collect()
}

/// Stops where a node waits for its rack.
pub(crate) fn known(observed: &ClusterObserved, nodes: &[NodeSeen<'_>]) -> Result<(), Decision> {
    for node in nodes {
        let Some(RackSource::Label(key)) = node.node.rack.as_ref().filter(|_| node.node.is_broker()) else { continue };
        let Some(kubernetes_node) = node.pod.as_ref().and_then(waiting) else { continue };
        let id = node.node.id;
        let labels = labels(observed, kubernetes_node);
        let progress = if let Some(rack) = rack(labels, key) {
            Progress::working(Reason::Creating, format!("telling node {id} that it is in rack {rack}"))
        } else {
            let why = match labels {
                None => {
                    "cannot be read: give the operator the right to read nodes (rbac.nodes of its chart)".to_owned()
                }
                Some(_) => format!("has no label {key}: give it one, or name the rack in the pool"),
            };
            let message = format!("node {id} waits for its rack: Kubernetes' node {kubernetes_node} {why}");
            Progress::working(Reason::RackUnknown, message)
        };
        return Err(Decision::wait(Stage::Racks, progress));
    }
    Ok(())
}

/// The Kubernetes node of a pod that has no rack yet.
fn waiting(pod: &PodSeen) -> Option<&str> {
    let waits = pod.rack.is_none() && pod.state != PodState::Terminating;
    pod.kubernetes_node.as_deref().filter(|_| waits)
}

fn labels<'a>(observed: &'a ClusterObserved, kubernetes_node: &str) -> Option<&'a BTreeMap<String, String>> {
    observed.kubernetes_nodes.get(kubernetes_node)
}

fn rack<'a>(labels: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    labels?.get(key).map(String::as_str).filter(|rack| !rack.is_empty())
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn key_in_layout<'a>(layout: &'a Layout, pod: &Pod) -> Option<&'a str> {
    let node = layout.nodes.get(&label(pod, names::NODE_ID_LABEL)?.parse().ok()?)?;
    match node.rack.as_ref().filter(|_| node.is_broker())? {
        RackSource::Label(key) => Some(key),
        RackSource::Named(_) => None,
    }
}

fn key_in_manifest<'a>(observed: &'a ClusterObserved, pod: &Pod) -> Option<&'a str> {
    let name = label(pod, names::POOL_LABEL)?;
    let pool = observed.cluster.spec.node_pools.iter().find(|pool| pool.name == name)?;
    let rack = pool.rack.as_ref().filter(|rack| rack.name.is_none() && pool.roles.contains(&Role::Broker))?;
    rack.topology_key.as_deref()
}
