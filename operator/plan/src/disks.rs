//! The disks of a cluster compared with what the identity has recorded of them, before anything else is touched. Called by the
//! cluster's plan; this is where a lost disk is told from a new one, and nothing here ever grants a second start of the quorum.

use std::collections::BTreeSet;

use gregor_operator_api::names;
use serde_json::Value;

use crate::cluster::{ClusterObserved, NodeSeen};
use crate::decision::{Decision, Stage};
use crate::identity::{Acceptance, Identity, Mint};
use crate::kafka::PartitionSeen;
use crate::objects::{self, storage};
use crate::pods::{PodState, Refusal};
use crate::progress::{Progress, Reason};
use crate::quorum;
use crate::validate::ValidCluster;
use crate::{Kind, Step};

/// Disks that are lost or somebody else's. What the other nodes need goes on meanwhile: it may be what lets a loss be given up.
pub(crate) struct Trouble {
    progress: Progress,
    /// Whose disks they are: their claims are left as they are, or as their owner brings them back.
    pub(crate) nodes: BTreeSet<i32>,
}

impl Trouble {
    /// What is said while something is done for other nodes, or waited for: the trouble goes first, as a person has to see it.
    pub(crate) fn during(&self, decision: Decision) -> Decision {
        let mut progress = self.progress.clone();
        if let (Progress::Stalled { message, .. }, Progress::Stalled { message: other, .. }) =
            (&mut progress, &decision.progress)
        {
            *message = format!("{message}; besides, {other}");
        }
        Decision { progress, ..decision }
    }

    /// What is decided where there is nothing else to do.
    pub(crate) fn stop(&self) -> Decision {
        Decision::wait(Stage::Loss, self.progress.clone())
    }
}

/// Writes down what was learnt of the disks, and says what must not go on. Everything is written down before anything
/// stops, so that a word about one node is not lost while another is in trouble.
pub(crate) fn record(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
    mint: Mint<'_>,
) -> Result<Option<Trouble>, Decision> {
    for node in nodes {
        belongs(identity, node)?;
        keeps_name(observed, node)?;
    }
    let replace =
        |identity: &Identity| Step::ReplaceIdentity(objects::identity(cluster, identity, observed.identity.as_ref()));
    for node in nodes {
        formatted(identity, node, &replace)?;
    }
    let mut lost: Vec<String> = Vec::new();
    let mut troubled: BTreeSet<i32> = BTreeSet::new();
    let mut noted: Option<Identity> = None;
    for node in nodes {
        let named = cluster.accept_data_loss.contains(&node.node.id);
        let loss = loss(node);
        let acceptance = match (loss.is_some(), named, node.recorded.acceptance) {
            (true, false, _) => Acceptance::Open,
            (true, true, Acceptance::Open) => {
                if let Some(obstacle) = obstacle(observed, identity, nodes, node) {
                    lost.push(format!("node {}: {obstacle}", node.node.id));
                    troubled.insert(node.node.id);
                    continue;
                }
                let identity = identity.clone().with_loss_accepted(node.node.id, node.claim_uid(), mint);
                let message = format!("the loss of node {}'s disk is accepted: it gets a new one", node.node.id);
                return Err(Decision::step(Stage::Loss, replace(&identity), Reason::Creating, message));
            }
            (false, _, Acceptance::Open) if !node.is_ready() => Acceptance::Open,
            (_, true, _) => Acceptance::Spent,
            (false, false, _) => Acceptance::Idle,
        };
        if acceptance != node.recorded.acceptance {
            let noted = noted.get_or_insert_with(|| identity.clone());
            if let Some(node) = noted.nodes.get_mut(&node.node.id) {
                node.acceptance = acceptance;
            }
        }
        if let Some(loss) = loss {
            troubled.insert(node.node.id);
            let remedy = if named {
                "its entry in spec.acceptDataLoss was there before this loss and does not count: take it out, and put it in again"
            } else {
                "bring the disk back, or give its data up by naming the node in spec.acceptDataLoss"
            };
            lost.push(format!("node {}: {loss}; nothing is formatted. To go on, {remedy}", node.node.id));
        }
    }
    let mut trouble = (!lost.is_empty())
        .then(|| Trouble { progress: Progress::stalled(Reason::DiskLost, lost.join("; ")), nodes: troubled });
    let under = |trouble: &Option<Trouble>, decision: Decision| match trouble {
        Some(trouble) => trouble.during(decision),
        None => decision,
    };
    if let Some(identity) = noted {
        let message = "writing down what spec.acceptDataLoss stands for";
        return Err(under(&trouble, Decision::step(Stage::Loss, replace(&identity), Reason::Creating, message)));
    }
    for node in nodes {
        own(identity, node, &replace).map_err(|decision| under(&trouble, decision))?;
    }
    for (id, message) in nodes.iter().filter_map(|node| Some((node.node.id, foreign(node)?))) {
        let trouble = trouble.get_or_insert_with(|| Trouble {
            progress: Progress::stalled(Reason::ForeignDisk, message),
            nodes: BTreeSet::new(),
        });
        trouble.nodes.insert(id);
    }
    if trouble.is_none() {
        follow_policy(observed, cluster, identity)?;
    }
    Ok(trouble)
}

/// A claim of another cluster is left alone.
fn belongs(identity: &Identity, node: &NodeSeen<'_>) -> Result<(), Decision> {
    let id = node.claim.and_then(|claim| claim["metadata"]["annotations"][names::CLUSTER_ID].as_str());
    if id.is_none_or(|id| id == identity.cluster_id) {
        return Ok(());
    }
    let message = format!(
        "the claim {} belongs to another cluster id than {}: rename or delete it",
        storage::claim_name(node.node),
        identity.cluster_id
    );
    Err(Decision::refuse(Reason::ForeignVolume, message))
}

/// The disk of a node is there, under the name that its volume had before: nothing is lost but the name.
fn keeps_name(observed: &ClusterObserved, node: &NodeSeen<'_>) -> Result<(), Decision> {
    let Some(uid) = node.recorded.claim_uid.as_deref().filter(|uid| node.claim_uid() != Some(*uid)) else {
        return Ok(());
    };
    let mut others = observed.objects.iter().filter(|((kind, _), _)| *kind == Kind::PersistentVolumeClaim);
    let Some(((_, claim), _)) = others.find(|(_, object)| object["metadata"]["uid"] == *uid) else { return Ok(()) };
    let Some(former) = claim.strip_prefix(&format!("{}-", node.node.name)) else { return Ok(()) };
    let message = format!(
        "the disk of node {} is the claim {claim}, and the manifest calls its volume {}: a volume keeps its name, write name: {former} in storage.volumes",
        node.node.id, node.node.volume.name
    );
    Err(Decision::refuse(Reason::InvalidSpec, message))
}

/// A disk that was seen formatted: from now on an empty one is a lost one.
fn formatted(identity: &Identity, node: &NodeSeen<'_>, replace: &dyn Fn(&Identity) -> Step) -> Result<(), Decision> {
    let Some(claim_uid) = node.claim_uid() else { return Ok(()) };
    let recorded = node.recorded;
    if !node.own_pod().is_some_and(|pod| pod.formatted)
        || (recorded.formatted && recorded.claim_uid.as_deref() == Some(claim_uid))
    {
        return Ok(());
    }
    let identity = identity.clone().with_formatted(node.node.id, claim_uid);
    let message = format!("node {}'s disk is formatted: no other may be", node.node.id);
    Err(Decision::step(Stage::Formatted, replace(&identity), Reason::Creating, message))
}

/// How a recorded disk is lost, if it is.
fn loss(node: &NodeSeen<'_>) -> Option<String> {
    if !node.recorded.formatted {
        return None;
    }
    let name = || storage::claim_name(node.node);
    let Some(claim_uid) = node.claim_uid() else {
        return Some(format!("the claim {} that held its data is gone", name()));
    };
    let other = node.recorded.claim_uid.as_deref().is_some_and(|recorded| recorded != claim_uid);
    match node.own_pod().map(|pod| &pod.state) {
        Some(PodState::Refused(Refusal::DiskLost(_))) if other => {
            Some(format!("the claim {} is another one than the one that held its data, and is empty", name()))
        }
        Some(PodState::Refused(Refusal::DiskLost(said))) => {
            Some(format!("its disk held data and is empty now ({said})"))
        }
        _ => None,
    }
}

/// Why the loss of a disk cannot be accepted yet, although a person did: the metadata of the cluster must be held by others, and what
/// others have of partitions that it was last in sync for must not be cut back to its empty disk. The only node of a cluster has no
/// others, and its data is all there is to give up.
fn obstacle(
    observed: &ClusterObserved,
    identity: &Identity,
    nodes: &[NodeSeen<'_>],
    node: &NodeSeen<'_>,
) -> Option<String> {
    if identity.nodes.len() <= 1 {
        return None;
    }
    let id = node.node.id;
    let keeps = |other: i32| {
        let other = nodes.iter().find(|seen| seen.node.id == other && seen.node.is_broker());
        other.is_some_and(|other| other.node.id != id && other.recorded.formatted && loss(other).is_none())
    };
    let Some(kafka) = &observed.kafka else {
        let sentence = if node.node.is_controller() {
            "its loss is accepted, but it may hold the metadata, and the brokers cannot be asked whether others do: get a majority of the controllers running, with their own disks"
        } else if identity.nodes.keys().any(|other| keeps(*other)) {
            "its loss is accepted, but it may have been the last in sync of what other brokers hold, and they cannot be asked: get them running, with a majority of the controllers"
        } else {
            return None;
        };
        return Some(observed.unseen.by_brokers(sentence));
    };
    if node.node.is_controller() && !quorum::survives_without(&kafka.quorum, id) {
        let sentence = "its loss is accepted, but no majority of the controllers holds the metadata without it: get more of them running, with their own disks";
        return Some(sentence.to_owned());
    }
    let mut alone = kafka.under_replicated.iter().filter(|partition| partition.in_sync == [id]);
    let partition = alone.find(|partition| partition.replicas.iter().any(|other| keeps(*other)))?;
    let PartitionSeen { topic, partition, replicas, .. } = partition;
    let others: Vec<_> = replicas.iter().filter(|other| keeps(**other)).collect();
    Some(format!(
        "its loss is accepted, but it was the last in sync of {topic}-{partition}, and the replicas that {others:?} have would be cut back to its empty disk: have one of them elected first (kafka-leader-election.sh --election-type unclean --topic {topic} --partition {partition})"
    ))
}

/// What is to be said where a node's disk is somebody else's.
fn foreign(node: &NodeSeen<'_>) -> Option<String> {
    let PodState::Refused(Refusal::ForeignDisk(said)) = &node.own_pod()?.state else { return None };
    Some(format!(
        "node {}: its disk belongs to somebody else and is left alone: {said}; give the node its own disk",
        node.node.id
    ))
}

/// Which claim the disk of a new node is.
fn own(identity: &Identity, node: &NodeSeen<'_>, replace: &dyn Fn(&Identity) -> Step) -> Result<(), Decision> {
    let claim_uid = node.claim_uid();
    if !node.recorded.formatted && claim_uid.is_some() && node.recorded.claim_uid.as_deref() != claim_uid {
        let mut identity = identity.clone();
        if let Some(node) = identity.nodes.get_mut(&node.node.id) {
            node.claim_uid = claim_uid.map(str::to_owned);
        }
        let message = format!("writing down which claim is the disk of node {}", node.node.id);
        return Err(Decision::step(Stage::Claim, replace(&identity), Reason::Creating, message));
    }
    Ok(())
}

/// Whether the identity goes with the KafkaCluster.
fn follow_policy(observed: &ClusterObserved, cluster: &ValidCluster, identity: &Identity) -> Result<(), Decision> {
    let seen = observed.identity.as_ref();
    let wanted = objects::identity(cluster, identity, seen);
    let owners = |object: &Value| object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let uids = |object: &Value| owners(object).iter().map(|owner| owner["uid"].clone()).collect::<Vec<_>>();
    let differs = seen
        .is_some_and(|seen| uids(seen) != uids(&wanted) || seen["metadata"]["labels"] != wanted["metadata"]["labels"]);
    if !differs {
        return Ok(());
    }
    let message = "the identity follows deletionPolicy";
    Err(Decision::step(Stage::Manifest, Step::ReplaceIdentity(wanted), Reason::Creating, message))
}

/// The claim of a node, as it was read.
pub(crate) fn claim<'a>(observed: &'a ClusterObserved, node: &crate::validate::Node) -> Option<&'a Value> {
    observed.object(Kind::PersistentVolumeClaim, &storage::claim_name(node))
}
