//! The plan of a KafkaCluster: which one step brings it nearer to its manifest, and what to say about it.
//!
//! The order of the questions is the order of safety: is the manifest possible, who is this cluster, is its disk what the
//! identity says, and only then what is to be written. Nothing of the outcome depends on the object's status.

use std::collections::BTreeMap;

use gregor_operator_api::cluster::{ListenerStatus, NodeStatus};
use gregor_operator_api::{KafkaCluster, KafkaClusterStatus, names};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::compare::{applied, differs};
use crate::identity::{Acceptance, Identity, Mint, NodeIdentity};
use crate::objects::{self, network, node, storage};
use crate::pods::{PodSeen, PodState, Refusal};
use crate::progress::{Progress, Reason, truncate};
use crate::properties::INTERNAL_PORT;
use crate::validate::{Invalid, Node, ValidCluster};
use crate::{Environment, Kind, Step, Wanted};

/// All that was read of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterObserved {
    /// The KafkaCluster.
    pub cluster: KafkaCluster,
    /// The ConfigMap `<cluster>-identity`.
    pub identity: Option<Value>,
    /// Every other object that carries the cluster's label, by kind and name.
    pub objects: BTreeMap<(Kind, String), Value>,
    /// Every pod that carries it.
    pub pods: Vec<Pod>,
    /// Objects that the API server stores otherwise than they were applied (an admission webhook may), by their uid, with the
    /// hash of what was applied: applying the same again would change nothing, for ever.
    pub settled: BTreeMap<String, String>,
}

impl ClusterObserved {
    fn object(&self, kind: Kind, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, name.to_owned()))
    }

    fn pod(&self, node_id: i32) -> Option<PodSeen> {
        let id = node_id.to_string();
        let mut pods: Vec<PodSeen> = self
            .pods
            .iter()
            .filter(|pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::NODE_ID_LABEL)) == Some(&id))
            .map(PodSeen::of)
            .collect();
        // A pod that ends says less about the node than one that begins.
        pods.sort_by_key(|pod| pod.state == PodState::Terminating);
        pods.into_iter().next()
    }
}

/// What to do next, and what to say.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterPlan {
    /// The step, if there is one.
    pub step: Option<Step>,
    /// How far the cluster is.
    pub progress: Progress,
    /// The status as it should be.
    pub status: KafkaClusterStatus,
}

/// What the decision comes to.
struct Decision {
    step: Option<Step>,
    progress: Progress,
}

impl Decision {
    fn step(step: Step, reason: Reason, message: impl Into<String>) -> Self {
        Self { step: Some(step), progress: Progress::working(reason, message) }
    }

    fn wait(progress: Progress) -> Self {
        Self { step: None, progress }
    }
}

impl From<Invalid> for Decision {
    fn from(invalid: Invalid) -> Self {
        Self::wait(Progress::stalled(invalid.reason, invalid.message))
    }
}

/// Plans a cluster. `now` is RFC 3339; `mint` gives random bytes for ids that do not exist yet.
pub fn plan(observed: &ClusterObserved, environment: &Environment, now: &str, mint: Mint<'_>) -> ClusterPlan {
    let valid = ValidCluster::of(&observed.cluster, environment);
    let decision = match &valid {
        Ok(cluster) => decide(observed, cluster, environment, mint).unwrap_or_else(|early| early),
        Err(invalid) => Decision::from(invalid.clone()),
    };
    let status = status(observed, valid.as_ref().ok(), &decision.progress, now);
    ClusterPlan { step: decision.step, progress: decision.progress, status }
}

/// The early ways out are `Err`, so that `?` leaves by them.
fn decide(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    environment: &Environment,
    mint: Mint<'_>,
) -> Result<Decision, Decision> {
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        return Err(Decision::wait(Progress::working(Reason::Terminating, "the cluster is being deleted")));
    }
    let identity = identify(observed, cluster, mint)?;
    let node = cluster.node(node_id(cluster, &identity)?)?;
    let recorded = identity.nodes.get(&node.id).ok_or_else(|| {
        let ids: Vec<String> = identity.nodes.keys().map(ToString::to_string).collect();
        Decision::wait(Progress::stalled(
            Reason::NodeIdChanged,
            format!(
                "the cluster's node has id {} and cannot get another: write nodeIds: [\"{0}\"] or replicas: 1",
                ids.join(", ")
            ),
        ))
    })?;
    let pod = observed.pod(node.id);
    let claim = observed.object(Kind::PersistentVolumeClaim, &storage::claim_name(&node));
    let ours = claim.is_none_or(|claim| {
        let id = claim["metadata"]["annotations"][names::CLUSTER_ID].as_str();
        id.is_none_or(|id| id == identity.cluster_id)
    });
    if !ours {
        return Err(Decision::wait(Progress::stalled(
            Reason::ForeignVolume,
            format!(
                "the claim {} belongs to another cluster id than {}: rename or delete it",
                storage::claim_name(&node),
                identity.cluster_id
            ),
        )));
    }
    record(observed, cluster, &identity, &node, recorded, pod.as_ref(), claim, mint)?;
    write_shared(observed, cluster, &identity, &node, claim)?;
    turn(observed, cluster, &identity, environment, &node, pod.as_ref())
}

/// Who the cluster is. Without an identity it is put together again from what repeats it, or minted where nothing is.
fn identify(observed: &ClusterObserved, cluster: &ValidCluster, mint: Mint<'_>) -> Result<Identity, Decision> {
    let repeats = observed
        .objects
        .iter()
        .filter(|((kind, _), _)| matches!(kind, Kind::PersistentVolumeClaim | Kind::StatefulSet))
        .map(|((_, name), object)| (name.as_str(), object));
    // What an earlier KafkaCluster of this name takes with it says nothing about this one.
    let leaving = match &observed.identity {
        Some(config_map) => leaves(config_map, cluster).then_some(cluster.identity()),
        None => repeats.clone().find(|(_, object)| leaves(object, cluster)).map(|(name, _)| name.to_owned()),
    };
    if let Some(name) = leaving {
        let message = format!("waiting until {name} of the deleted KafkaCluster of this name is gone");
        return Err(Decision::wait(Progress::working(Reason::Terminating, message)));
    }
    if let Some(config_map) = &observed.identity {
        return Identity::parse(config_map).map_err(|error| {
            Decision::wait(Progress::stalled(
                Reason::IdentityUnreadable,
                format!("the ConfigMap {} says who this cluster is and cannot be read: {error}; restore it, or delete it to have it put together from the volume claims", cluster.identity()),
            ))
        });
    }
    let rebuilt = Identity::rebuild(repeats).map_err(|name| {
        Decision::wait(Progress::stalled(
            Reason::ForeignVolume,
            format!("the identity is gone, and {name} does not say which cluster, node and directory it belongs to: restore the ConfigMap {}", cluster.identity()),
        ))
    })?;
    let (identity, message) = match rebuilt {
        Some(identity) => (identity, "the identity is gone: putting it together from the volume claims"),
        None => (Identity::mint(cluster.pool.node_id.unwrap_or(0), mint), "giving the cluster its identity"),
    };
    let step = Step::CreateIdentity(objects::identity(cluster, &identity, None));
    Err(Decision::step(step, Reason::Creating, message))
}

/// Whether an object is deleted, or will be with another KafkaCluster than this one.
fn leaves(object: &Value, cluster: &ValidCluster) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    object["metadata"]["deletionTimestamp"].is_string()
        || (!owners.is_empty() && owners.iter().all(|owner| owner["uid"] != *cluster.uid))
}

fn node_id(cluster: &ValidCluster, identity: &Identity) -> Result<i32, Decision> {
    match (cluster.pool.node_id, identity.nodes.keys().next()) {
        (Some(id), _) | (None, Some(&id)) => Ok(id),
        (None, None) => Err(Decision::wait(Progress::stalled(
            Reason::IdentityUnreadable,
            format!("the ConfigMap {} names no node: restore it", cluster.identity()),
        ))),
    }
}

/// Compares the disk with the identity and writes down what was learnt, before anything else is touched.
#[allow(clippy::too_many_arguments)] // one question about all that is known of a disk
fn record(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    node: &Node,
    recorded: &NodeIdentity,
    pod: Option<&PodSeen>,
    claim: Option<&Value>,
    mint: Mint<'_>,
) -> Result<(), Decision> {
    let seen = observed.identity.as_ref();
    let replace = |identity: &Identity| Step::ReplaceIdentity(objects::identity(cluster, identity, seen));
    let claim_uid = claim.and_then(|claim| claim["metadata"]["uid"].as_str());
    // A pod of an earlier directory speaks about a disk that is given up.
    let pod = pod.filter(|pod| pod.directory_id == recorded.directory_id);
    let named = cluster.accept_data_loss.contains(&node.id);

    if let Some(claim_uid) = claim_uid
        && pod.is_some_and(|pod| pod.formatted)
        && (!recorded.formatted || recorded.claim_uid.as_deref() != Some(claim_uid))
    {
        let identity = identity.clone().with_formatted(node.id, claim_uid);
        let message = format!("node {}'s disk is formatted: no other may be", node.id);
        return Err(Decision::step(replace(&identity), Reason::Creating, message));
    }
    let loss = loss(node, recorded, pod, claim);
    let settled = pod.is_some_and(|pod| pod.state == PodState::Ready);
    let acceptance = match (loss.is_some(), named, recorded.acceptance) {
        (true, false, _) => Acceptance::Open,
        (true, true, Acceptance::Open) => {
            let identity = identity.clone().with_loss_accepted(node.id, claim_uid, mint);
            let message = format!("the loss of node {}'s disk is accepted: it gets a new one", node.id);
            return Err(Decision::step(replace(&identity), Reason::Creating, message));
        }
        (false, _, Acceptance::Open) if !settled => Acceptance::Open,
        (_, true, _) => Acceptance::Spent,
        (false, false, _) => Acceptance::Idle,
    };
    let noted = (acceptance != recorded.acceptance).then(|| {
        let mut identity = identity.clone();
        if let Some(node) = identity.nodes.get_mut(&node.id) {
            node.acceptance = acceptance;
        }
        replace(&identity)
    });
    if let Some(loss) = loss {
        let remedy = if named {
            "its entry in spec.acceptDataLoss was there before this loss and does not count: take it out, and put it in again"
        } else {
            "bring the disk back, or give its data up by naming the node in spec.acceptDataLoss"
        };
        let message = format!("node {}: {loss}; nothing is formatted. To go on, {remedy}", node.id);
        return Err(Decision { step: noted, progress: Progress::stalled(Reason::DiskLost, message) });
    }
    if let Some(step) = noted {
        return Err(Decision::step(step, Reason::Creating, "writing down what spec.acceptDataLoss stands for"));
    }
    if let Some(PodState::Refused(Refusal::ForeignDisk(said))) = pod.map(|pod| &pod.state) {
        let message = format!(
            "node {}: its disk belongs to somebody else and is left alone: {said}; give the node its own disk",
            node.id
        );
        return Err(Decision::wait(Progress::stalled(Reason::ForeignDisk, message)));
    }
    if !recorded.formatted && claim_uid.is_some() && recorded.claim_uid.as_deref() != claim_uid {
        let mut identity = identity.clone();
        if let Some(node) = identity.nodes.get_mut(&node.id) {
            node.claim_uid = claim_uid.map(str::to_owned);
        }
        return Err(Decision::step(
            replace(&identity),
            Reason::Creating,
            "writing down which claim is the node's disk",
        ));
    }
    let owners = |object: &Value| object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let wanted = objects::identity(cluster, identity, seen);
    if seen.is_some_and(|seen| {
        let uids = |object: &Value| owners(object).iter().map(|owner| owner["uid"].clone()).collect::<Vec<_>>();
        uids(seen) != uids(&wanted) || seen["metadata"]["labels"] != wanted["metadata"]["labels"]
    }) {
        return Err(Decision::step(
            Step::ReplaceIdentity(wanted),
            Reason::Creating,
            "the identity follows deletionPolicy",
        ));
    }
    Ok(())
}

/// How a recorded disk is lost, if it is.
fn loss(node: &Node, recorded: &NodeIdentity, pod: Option<&PodSeen>, claim: Option<&Value>) -> Option<String> {
    if !recorded.formatted {
        return None;
    }
    let Some(claim) = claim else {
        return Some(format!("the claim {} that held its data is gone", storage::claim_name(node)));
    };
    let other = recorded.claim_uid.is_some() && claim["metadata"]["uid"].as_str() != recorded.claim_uid.as_deref();
    match pod.map(|pod| &pod.state) {
        Some(PodState::Refused(Refusal::DiskLost(_))) if other => Some(format!(
            "the claim {} is another one than the one that held its data, and is empty",
            storage::claim_name(node)
        )),
        Some(PodState::Refused(Refusal::DiskLost(said))) => {
            Some(format!("its disk held data and is empty now ({said})"))
        }
        _ => None,
    }
}

/// What every node needs and what can be written at any time without a restart.
fn write_shared(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    node: &Node,
    claim: Option<&Value>,
) -> Result<(), Decision> {
    let mut wanted = network::shared(cluster, node);
    wanted.push(storage::claim(cluster, node, identity, claim));
    wanted.push(storage::grant(cluster, node, identity));
    if let Some(ending) = wanted.iter().find_map(|wanted| {
        let seen = observed.object(wanted.kind, &wanted.name)?;
        seen["metadata"]["deletionTimestamp"].is_string().then_some(wanted)
    }) {
        let message =
            format!("{} {} is being deleted: it is made again when it is gone", ending.kind.as_str(), ending.name);
        return Err(Decision::wait(Progress::working(Reason::Terminating, message)));
    }
    // Listeners that were taken out of the manifest.
    let obsolete = observed.objects.iter().find(|((kind, name), service)| {
        *kind == Kind::Service
            && service["metadata"]["labels"][names::NODE_ID_LABEL].is_string()
            && service["metadata"]["deletionTimestamp"].is_null()
            && !wanted.iter().any(|wanted| wanted.kind == Kind::Service && wanted.name == *name)
    });
    if let Some(((kind, name), seen)) = obsolete {
        return Err(delete(*kind, name, seen));
    }
    write(observed, wanted, Reason::Creating)
}

/// Creates what is missing, then applies what differs.
fn write(observed: &ClusterObserved, wanted: Vec<Wanted>, reason: Reason) -> Result<(), Decision> {
    let (there, missing): (Vec<Wanted>, Vec<Wanted>) =
        wanted.into_iter().partition(|wanted| observed.object(wanted.kind, &wanted.name).is_some());
    let names = |objects: &[Wanted]| {
        objects.iter().map(|wanted| format!("{} {}", wanted.kind.as_str(), wanted.name)).collect::<Vec<_>>().join(", ")
    };
    if !missing.is_empty() {
        let message = format!("creating {}", names(&missing));
        return Err(Decision::step(Step::Create(missing), reason, message));
    }
    let differing: Vec<Wanted> = there
        .into_iter()
        .filter(|wanted| {
            observed.object(wanted.kind, &wanted.name).is_none_or(|seen| {
                let settled = seen["metadata"]["uid"].as_str().and_then(|uid| observed.settled.get(uid));
                differs(&wanted.body, seen)
                    && (settled.is_none() || settled.map(String::as_str) != applied(&wanted.body))
            })
        })
        .collect();
    if !differing.is_empty() {
        let message = format!("updating {}", names(&differing));
        return Err(Decision::step(Step::Apply(differing), reason, message));
    }
    Ok(())
}

/// The node's turn: only now are its ConfigMap and its template written, and only then is its pod replaced.
fn turn(
    observed: &ClusterObserved,
    cluster: &ValidCluster,
    identity: &Identity,
    environment: &Environment,
    node: &Node,
    pod: Option<&PodSeen>,
) -> Result<Decision, Decision> {
    let seen = observed.object(Kind::StatefulSet, &node.name);
    if seen.is_some_and(|seen| seen["metadata"]["deletionTimestamp"].is_string()) {
        let message = format!("StatefulSet {} is being deleted: it is made again when it is gone", node.name);
        return Err(Decision::wait(Progress::working(Reason::Terminating, message)));
    }
    // An operator of another release must not restart what runs: without a word in the manifest the image stays.
    let image = cluster
        .image
        .clone()
        .or_else(|| seen.and_then(node::image).map(str::to_owned))
        .unwrap_or_else(|| format!("{}:{}", environment.image_repository, environment.image_tag));
    let config_map = node::config_map(cluster, node);
    let (stateful_set, revision) = node::stateful_set(cluster, node, identity, environment, &image, &config_map.name);
    let keep = config_map.name.clone();
    write(observed, vec![config_map], Reason::Creating)?;
    let reason =
        if seen.is_some_and(|seen| node::revision(seen) != revision) { Reason::Restarting } else { Reason::Creating };
    write(observed, vec![stateful_set], reason)?;

    let Some(pod) = pod else {
        return Err(Decision::wait(Progress::working(
            Reason::WaitingForPod,
            format!("waiting for the pod of StatefulSet {}", node.name),
        )));
    };
    if pod.state != PodState::Terminating && pod.revision != revision {
        let step = Step::DeletePod { name: pod.name.clone(), uid: pod.uid.clone() };
        let message = format!("restarting node {} with its new configuration", node.id);
        return Err(Decision::step(step, Reason::Restarting, message));
    }
    let progress = pod_progress(node, pod);
    if matches!(progress, Progress::Ready { .. })
        && let Some(((kind, name), seen)) = obsolete_config_map(observed, node, &keep)
    {
        return Err(delete(*kind, name, seen));
    }
    Ok(Decision::wait(progress))
}

fn delete(kind: Kind, name: &str, seen: &Value) -> Decision {
    let uid = seen["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let step = Step::Delete { kind, name: name.to_owned(), uid };
    Decision::step(step, Reason::Creating, format!("deleting {} {name}, which nothing uses any more", kind.as_str()))
}

/// A ConfigMap of an earlier configuration of the node, once the node runs with the newest.
fn obsolete_config_map<'a>(
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

fn pod_progress(node: &Node, pod: &PodSeen) -> Progress {
    let id = node.id;
    match &pod.state {
        PodState::Ready => Progress::ready("every node runs as the manifest says"),
        PodState::Running => Progress::working(
            Reason::Recovering,
            format!("node {id} runs and is not ready yet: it opens its log or joins"),
        ),
        PodState::Starting => Progress::working(Reason::Starting, format!("node {id} is starting")),
        PodState::Terminating => Progress::working(Reason::Restarting, format!("node {id} is shutting down")),
        PodState::Unschedulable(said) => {
            Progress::working(Reason::Unschedulable, format!("no Kubernetes node takes the pod of node {id}: {said}"))
        }
        PodState::ImagePullFailed(said) => {
            Progress::working(Reason::ImagePullFailed, format!("the image of node {id} cannot be had: {said}"))
        }
        PodState::FormatFailed(said) => {
            Progress::working(Reason::FormatFailed, format!("the disk of node {id} could not be checked: {said}"))
        }
        PodState::Crashing(said) => {
            Progress::working(Reason::NodeCrashing, format!("node {id} ends again and again: {said}"))
        }
        // A fresh disk whose permission the pod has not seen yet: the next attempt will.
        PodState::Refused(_) => {
            Progress::working(Reason::Starting, format!("node {id} waits for the permission to format its new disk"))
        }
    }
}

fn status(
    observed: &ClusterObserved,
    cluster: Option<&ValidCluster>,
    progress: &Progress,
    now: &str,
) -> KafkaClusterStatus {
    let generation = observed.cluster.metadata.generation.unwrap_or_default();
    let before = observed.cluster.status.clone().unwrap_or_default();
    let phase = match progress {
        Progress::Ready { .. } => "Running".to_owned(),
        Progress::Working { reason, message } | Progress::Stalled { reason, message } => {
            format!("{}: {message}", reason.as_str())
        }
    };
    let identity = observed.identity.as_ref().and_then(|config_map| Identity::parse(config_map).ok());
    let mut status = KafkaClusterStatus {
        observed_generation: generation,
        phase: Some(truncate(&phase, 250)),
        conditions: progress.conditions(&before.conditions, generation, now),
        cluster_id: identity.as_ref().map(|identity| identity.cluster_id.clone()),
        ..KafkaClusterStatus::default()
    };
    let Some(cluster) = cluster else { return status };
    status.node_count = 1;
    status.bootstrap_servers = Some(cluster.bootstrap_servers(INTERNAL_PORT));
    status.listeners.push(ListenerStatus {
        name: "internal".to_owned(),
        bootstrap_servers: cluster.bootstrap_servers(INTERNAL_PORT),
    });
    for (id, recorded) in identity.iter().flat_map(|identity| &identity.nodes) {
        let pod = observed.pod(*id);
        status.nodes.push(NodeStatus {
            node_id: *id,
            pool: cluster.pool.name.clone(),
            ready: pod.as_ref().is_some_and(|pod| pod.state == PodState::Ready),
            directory_id: recorded.directory_id.clone(),
        });
        status.image = pod.and_then(|pod| pod.image);
        if let Ok(node) = cluster.node(*id) {
            status.listeners.extend(node.listeners.iter().map(|listener| ListenerStatus {
                name: listener.name.clone(),
                bootstrap_servers: format!("{}:{}", listener.advertised_host, listener.advertised_port),
            }));
        }
    }
    status
}
